package conntrack

import (
	"math"
	"math/bits"
)

// distinct estimates how many different hashes it has seen, with a standard error of 1.04/√4096 =
// 1.6 %, on 4 KiB (HyperLogLog: Flajolet, Fusy, Gandouet and Meunier, AofA 2007). It is asked only
// when sources had to be forgotten; until then they are counted.
type distinct struct{ registers [1 << distinctBits]uint8 }

const distinctBits = 12

func (d *distinct) reset() { clear(d.registers[:]) }

// add takes a 64-bit hash, the same for the same thing.
func (d *distinct) add(hash uint64) {
	r := &d.registers[hash>>(64-distinctBits)]
	*r = max(*r, uint8(bits.LeadingZeros64(hash<<distinctBits|1<<(distinctBits-1)))+1)
}

func (d *distinct) estimate() int {
	const m = 1 << distinctBits
	sum, empty := 0.0, 0
	for _, r := range d.registers {
		sum += math.Ldexp(1, -int(r))
		if r == 0 {
			empty++
		}
	}
	raw := 0.7213 / (1 + 1.079/m) * m * m / sum
	if raw <= 2.5*m && empty > 0 {
		return int(m * math.Log(float64(m)/float64(empty))) // linear counting, better for few
	}
	return int(raw)
}

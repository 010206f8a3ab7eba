package packet

import (
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Attach gives a socket a filter, so that the kernel looks at a flood and not the lab.
func Attach(fd int, program []bpf.Instruction) error {
	prog, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(prog))
	for i, ins := range prog {
		filter[i] = unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}

// FromAny is a filter for IPv4 frames whose source lies in one of the prefixes.
func FromAny(prefixes []netip.Prefix) []bpf.Instruction {
	var prog []bpf.Instruction
	for _, p := range prefixes {
		a := p.Masked().Addr().As4()
		prog = append(prog,
			bpf.LoadAbsolute{Off: ethLen + 12, Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: ^uint32(0) << (32 - p.Bits())},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3]),
				SkipTrue: 1},
			bpf.RetConstant{Val: snapLen},
		)
	}
	return append(prog, bpf.RetConstant{Val: 0})
}

// snapLen is how much of a frame passes a filter: all headers.
const snapLen = 128

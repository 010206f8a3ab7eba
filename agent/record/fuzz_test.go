package record

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"testing"

	"ctguard/policy"
)

// Whatever a recording says, it is refused or decided on.
func FuzzReplay(f *testing.F) {
	for _, o := range []policy.Observation{course()[0], course()[70]} {
		first, _ := json.Marshal(head{format, "test", policy.Defaults(policy.Server), policy.OrdinaryDay{}})
		second, _ := json.Marshal(frame{Observation: o, Host: &o.Host, Level: 3})
		f.Add(append(append(first, '\n'), second...))
	}
	f.Add([]byte("{}\n{}"))
	f.Add([]byte(`{"policy":null}` + "\n" + `{"host":{"services":[{}]},"o":{"count":-1,"capacity":0}}`))
	f.Fuzz(func(_ *testing.T, text []byte) {
		_ = Replay(bytes.NewReader(text), nil, func(Tick) {})
		var packed bytes.Buffer
		zip := gzip.NewWriter(&packed)
		_, _ = zip.Write(text)
		_ = zip.Close()
		c := policy.Defaults(policy.Server)
		_ = Replay(bytes.NewReader(packed.Bytes()), nil, func(Tick) {})
		_ = Replay(bytes.NewReader(packed.Bytes()), &c, func(Tick) {})
	})
}

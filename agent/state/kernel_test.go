package state

import (
	"os"
	"path/filepath"
	"testing"
)

// What the kernel can do is known to the next process until the kernel is started anew. What is of another version,
// damaged or of nobody knows when counts for nothing.
func TestKernel(t *testing.T) {
	type found struct{ Owner, Synproxy bool }
	dir, proc := t.TempDir(), t.TempDir()
	id := filepath.Join(proc, "sys/kernel/random/boot_id")
	if err := os.MkdirAll(filepath.Dir(id), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(name string, counts, fails bool) {
		t.Helper()
		var got found
		there, err := At(dir).Kernel(proc, &got)
		if there != counts || (err != nil) != fails || counts && got != (found{true, false}) {
			t.Errorf("%s: %+v, %t, %v", name, got, there, err)
		}
	}
	write(id, "one\n")
	want("nothing kept", false, false)
	if err := At(dir).KeepKernel(proc, found{Owner: true}); err != nil {
		t.Fatal(err)
	}
	want("the next process", true, false)
	write(id, "two\n")
	want("another boot", false, false)
	if err := os.Remove(id); err != nil {
		t.Fatal(err)
	}
	want("no boot", false, true)
	write(id, "\n")
	write(At(dir).kernel(), `{"version":1,"boot":"","found":{"Owner":true}}`)
	want("a boot without a name", false, false)
	write(id, "one\n")
	write(At(dir).kernel(), `{"version":0,"boot":"one","found":{"Owner":true}}`)
	want("another version", false, false)
	write(At(dir).kernel(), `{"version":1,"boot":"one","found":{"Owner":`)
	want("cut off", false, true)
	write(At(dir).kernel(), `{"version":1,"boot":"one","found":[]}`)
	want("damaged", false, true)
}

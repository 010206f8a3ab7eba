package spent

import (
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// What a child takes is its family's and not its parent's own.
func TestFamily(t *testing.T) {
	cmd := exec.Command("sh", "-c", "(while :; do :; done) & echo; wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	_, _ = out.Read(make([]byte, 1))
	deadline := time.Now().Add(time.Minute)
	for {
		own, err := Process(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		all, err := Family(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if all.CPUSeconds >= own.CPUSeconds+0.05 && all.PeakRSSKiB > own.PeakRSSKiB && own.PeakRSSKiB > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v of its own, %+v with its child", own, all)
		}
	}
}

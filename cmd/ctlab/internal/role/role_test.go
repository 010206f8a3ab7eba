package role

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	Hook(map[string]Func{
		"double": double,
		"fail":   func(context.Context, *Conn) error { return errors.New("cannot be set up") },
		"die":    func(context.Context, *Conn) error { panic("the last words") },
	})
	os.Exit(m.Run())
}

// double waits for the start, then reports twice its specification on stop.
func double(ctx context.Context, c *Conn) error {
	var n int
	if err := c.Spec(&n); err != nil {
		return err
	}
	ctx, err := c.Ready(ctx)
	if err != nil {
		return err
	}
	_, _ = c.Started(ctx) // stop may come before the start
	<-ctx.Done()
	return c.Result(2 * n)
}

type plain struct{}

func (plain) Start(cmd *exec.Cmd) error { return cmd.Start() }

func TestConversation(t *testing.T) {
	p, err := Spawn(plain{}, "double", 21)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(Now()); err != nil {
		t.Fatal(err)
	}
	var got int
	if err := p.Stop(&got); err != nil || got != 42 {
		t.Errorf("result is %d (%v), want 42", got, err)
	}
	<-p.Exited()
}

func TestFailures(t *testing.T) {
	for name, want := range map[string]string{
		"fail": "cannot be set up",
		"die":  "the last words",
		"none": "unknown role",
	} {
		_, err := Spawn(plain{}, name, 1)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want one with %q", name, err, want)
		}
	}
}

func TestKilledRole(t *testing.T) {
	p, err := Spawn(plain{}, "double", 1)
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
	p.Kill()
	<-p.Exited()
	if err := p.Stop(nil); err == nil {
		t.Error("a killed role delivered a result")
	}
}

// A role that outlived its parent would see the end of its input.
func TestEndOfInputEndsTheRole(t *testing.T) {
	p, err := Spawn(plain{}, "double", 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.in.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.Exited()
}

func TestRolesDoNotSpawnRoles(t *testing.T) {
	t.Setenv(envRole, "double")
	if _, err := Spawn(plain{}, "double", 1); err == nil {
		t.Error("a role spawned a role")
	}
}

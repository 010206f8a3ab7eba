package main

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// tmux runs tmux on the server of the script's newest terminal.
func tmux(ts *testscript.TestScript, args ...string) string {
	args = append([]string{"-f", "/dev/null", "-S", ts.MkAbs("tmux" + ts.Getenv("terminal"))}, args...)
	out, err := exec.Command("tmux", args...).CombinedOutput()
	if err != nil {
		ts.Fatalf("tmux %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// terminal WIDTH HEIGHT VAR=VALUE... program args... runs a program in a terminal. What it writes there also goes
// to the file written.
func terminal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: terminal WIDTH HEIGHT [VAR=VALUE...] program [args...]")
	}
	ts.Setenv("terminal", ts.Getenv("terminal")+"I") // one after the other
	program := append([]string{"env", "PATH=" + ts.Getenv("PATH")}, args[2:]...)
	// It waits for its end to be seen, and says how it ended.
	line := "cd " + ts.MkAbs(".") + "; read; " + strings.Join(program, " ") + `; echo ended with $?; read`
	tmux(ts, "-u", "new-session", "-d", "-x", args[0], "-y", args[1], line)
	server := ts.MkAbs("tmux" + ts.Getenv("terminal"))
	ts.Defer(func() { _ = exec.Command("tmux", "-S", server, "kill-server").Run() })
	tmux(ts, "pipe-pane", "cat > "+ts.MkAbs("written"))
	tmux(ts, "send-keys", "Enter")
}

// keys KEY... presses keys in the terminal, by the names that tmux has for them.
func keys(ts *testscript.TestScript, _ bool, args []string) {
	tmux(ts, append([]string{"send-keys"}, args...)...)
}

// resize WIDTH HEIGHT gives the terminal another size.
func resize(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: resize WIDTH HEIGHT")
	}
	tmux(ts, "resize-window", "-x", args[0], "-y", args[1])
}

// screen PATTERN waits until the terminal shows what matches; with ! until it no longer does. What it showed last is
// in the file screen, with its colours in coloured.
func screen(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] screen PATTERN")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		shown := tmux(ts, "capture-pane", "-p")
		if pattern.MatchString(shown) != neg {
			ts.Check(os.WriteFile(ts.MkAbs("screen"), []byte(shown), 0o600))
			ts.Check(os.WriteFile(ts.MkAbs("coloured"), []byte(tmux(ts, "capture-pane", "-p", "-e")), 0o600))
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%q on the screen is still %t:\n%s", args[0], neg, shown)
		}
	}
}

// wrote LEAST MOST waits for the program to write to the terminal for three seconds, and checks how many bytes a
// second that were.
func wrote(ts *testscript.TestScript, _ bool, args []string) {
	least, err := strconv.Atoi(args[0])
	ts.Check(err)
	most, err := strconv.Atoi(args[1])
	ts.Check(err)
	size := func() int64 {
		info, err := os.Stat(ts.MkAbs("written"))
		ts.Check(err)
		return info.Size()
	}
	const span = 3
	before := size()
	time.Sleep(span * time.Second) // what is asked for is a rate
	if n := int(size()-before) / span; n < least || n > most {
		ts.Fatalf("%d bytes a second, want %d to %d", n, least, most)
	}
}

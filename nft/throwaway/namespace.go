// Package throwaway runs code in network namespaces that nobody else is in and that are gone afterwards: what
// is tried there touches no table and no ruleset in use.
//
// What a caller can get wrong: making a namespace needs CAP_SYS_ADMIN, and goroutines that the code starts are
// not in it.
package throwaway

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace runs f in a new network namespace, on a thread that ends with it.
func Namespace(f func() error) error { return Start(f)() }

// Start begins to run f in a new network namespace, on a thread that ends with it, and returns once it is there: what
// is left of it needs no CAP_SYS_ADMIN. wait returns what f does, once.
func Start(f func() error) (wait func() error) {
	there, result := make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The main thread must not change: it never ends, and it is what /proc/self, and so
			// /proc/net, means for the whole process. While it waits here, another thread serves.
			other := Start(f)
			close(there)
			result <- other()
			runtime.UnlockOSThread()
			return
		}
		err := unix.Unshare(unix.CLONE_NEWNET)
		close(there)
		if err != nil {
			result <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		result <- f()
	}()
	<-there
	return func() error { return <-result }
}

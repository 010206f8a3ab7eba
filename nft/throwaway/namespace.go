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
func Namespace(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The main thread must not change: it never ends, and it is what /proc/self, and so
			// /proc/net, means for the whole process. While it waits here, another thread serves.
			result <- Namespace(f)
			runtime.UnlockOSThread()
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

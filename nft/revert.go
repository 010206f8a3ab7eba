package nft

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Leftover reports whether the calling thread's network namespace has a table inet ctguard that
// nobody owns: a kernel without the flag owner keeps it when the process is killed. The error is
// [ErrOwned] when the table belongs to a running process.
func Leftover() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables socket: %w", err)
	}
	owner, found, err := lookUp(conn)
	if err == nil && owner != 0 {
		err = ErrOwned
	}
	return found, err
}

// Revert deletes what [Leftover] finds, and reports whether there was anything.
func Revert() (bool, error) {
	found, err := Leftover()
	if err != nil || !found {
		return false, err
	}
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables socket: %w", err)
	}
	conn.DelTable(&nftables.Table{Name: Name, Family: nftables.TableFamilyINet})
	err = conn.Flush()
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT): // it went meanwhile
		return false, nil
	}
	return false, fmt.Errorf("delete table inet %s: %w", Name, err)
}

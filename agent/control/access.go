package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// peerKey finds the credentials of a control connection's peer in a request's context.
type peerKey struct{}

// withPeer notes who is at the other end of a control connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if conn, ok := c.(*boundedConn); ok {
		return context.WithValue(ctx, peerKey{}, conn.peer)
	}
	return ctx
}

// peerOf returns who asks; nil where nobody knows.
func peerOf(ctx context.Context) *unix.Ucred {
	cred, _ := ctx.Value(peerKey{}).(*unix.Ucred)
	return cred
}

// isRoot reports whether credentials are root's.
func isRoot(cred *unix.Ucred) bool { return cred != nil && cred.Uid == 0 }

// groupID returns the id of a group, or -1, which changes nothing, without a name.
func groupID(name string) (int, error) {
	if name == "" {
		return -1, nil // it stays the group of whoever made the socket
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("group %q: %w", name, err)
	}
	return strconv.Atoi(g.Gid)
}

// mayChange returns why whoever has these credentials may not change things; nil for root and the members of
// the group, if one is named.
func mayChange(cred *unix.Ucred, group string) error {
	if cred == nil {
		return errors.New("nobody knows who you are")
	}
	if cred.Uid == 0 {
		return nil
	}
	if group == "" {
		return errors.New("only root may change things here (group in the config names who else may)")
	}
	gid, err := groupID(group)
	if err != nil {
		return err
	}
	if int(cred.Gid) == gid {
		return nil
	}
	if u, err := user.LookupId(strconv.Itoa(int(cred.Uid))); err == nil {
		if groups, err := u.GroupIds(); err == nil && slices.Contains(groups, strconv.Itoa(gid)) {
			return nil
		}
	}
	return fmt.Errorf("only root and members of group %s may change things here", group)
}

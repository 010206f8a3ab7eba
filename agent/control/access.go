package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"strconv"

	"ctguard/agent/state"
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
func peerOf(ctx context.Context) *state.Credentials {
	cred, _ := ctx.Value(peerKey{}).(*state.Credentials)
	return cred
}

// isRoot reports whether credentials are root's.
func isRoot(cred *state.Credentials) bool { return cred != nil && cred.UID == 0 }

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

// errNobody refuses those of whom the kernel says nothing.
var errNobody = errors.New("nobody knows who you are")

// mayRead returns why whoever has these credentials may not read; nil for root, for the user that the daemon runs as,
// and for members of the socket's group, which is the one that may change things, if one is named. The socket's rights
// say the same, but somebody may change those.
func mayRead(cred *state.Credentials, daemon, group int) error {
	switch {
	case cred == nil:
		return errNobody
	case cred.UID == 0, cred.UID == daemon, cred.In(group):
		return nil
	}
	return errors.New("only root and members of the socket's group may read here")
}

// mayChange returns why whoever has these credentials may not change things; nil for root and the members of
// the group, if one is named: in the groups that the kernel knows their process to be in, not those of a user database.
func mayChange(cred *state.Credentials, group string) error {
	if cred == nil {
		return errNobody
	}
	if cred.UID == 0 {
		return nil
	}
	if group == "" {
		return errors.New("only root may change things here (group in the config names who else may)")
	}
	gid, err := groupID(group)
	if err != nil {
		return err
	}
	if cred.In(gid) {
		return nil
	}
	return fmt.Errorf("only root and members of group %s may change things here", group)
}

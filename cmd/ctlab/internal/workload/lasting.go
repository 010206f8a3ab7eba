package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"ctguard/cmd/ctlab/internal/role"
	"ctguard/cmd/ctlab/internal/service"
)

const (
	// lastingPause lies between two questions on a lasting connection.
	lastingPause = time.Second
	// lastingPatience is how long an exchange may take: TCP may repeat itself a
	// few times, as it would for a person at a terminal.
	lastingPatience = 5 * time.Second
)

// lasting is one long-lived connection.
type lasting struct {
	conn net.Conn
	lost bool
	// use passes one line on it, the way this connection is used; pause lies between two uses.
	use   func() error
	pause time.Duration
}

// question is what clients say to get an echo.
const question = "still there?\n"

func (w *workload) openLasting(ctx context.Context) error {
	for i := range w.spec.Lasting {
		src := w.spec.Sources[i%len(w.spec.Sources)]
		port := w.spec.LinePort
		if i >= w.spec.Lasting/2 {
			port = w.spec.SpeakPort
		}
		l, err := w.dialLasting(ctx, src, port)
		if err != nil {
			return err
		}
		w.lasting = append(w.lasting, l)
	}
	if !w.spec.Session.IsValid() {
		return nil
	}
	var err error
	w.session, err = w.dialLasting(ctx, w.spec.Session, w.spec.SSHPort)
	return err
}

func (w *workload) dialLasting(ctx context.Context, src netip.Addr, port uint16) (*lasting, error) {
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0)),
		Timeout:   lastingPatience, KeepAlive: -1, // a keepalive would not be silent
	}
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(w.target(src), port).String())
	if err != nil {
		return nil, fmt.Errorf("open lasting connection: %w", err)
	}
	l := &lasting{conn: conn, pause: lastingPause}
	l.use = l.exchange
	if port == w.spec.SpeakPort {
		l.use, l.pause = l.listen, 0 // the server sets the pace
	}
	if err := l.use(); err != nil {
		return nil, fmt.Errorf("use lasting connection: %w", err)
	}
	return l, nil
}

// talk uses the connection again and again until ctx ends, or until it is lost, and says why.
func (l *lasting) talk(ctx context.Context) error {
	for role.WaitUntil(ctx, role.Now().Add(l.pause)) == nil {
		if err := l.use(); err != nil {
			l.lost = true
			return err
		}
	}
	return nil
}

// exchange says a line and waits for its echo.
func (l *lasting) exchange() error {
	if err := l.conn.SetDeadline(time.Now().Add(lastingPatience)); err != nil {
		return err
	}
	if _, err := l.conn.Write([]byte(question)); err != nil {
		return err
	}
	return l.expect(question)
}

// listen waits for a line of the server's, which speaks by itself.
func (l *lasting) listen() error {
	if err := l.conn.SetDeadline(time.Now().Add(lastingPatience)); err != nil {
		return err
	}
	return l.expect(service.Line)
}

func (l *lasting) expect(line string) error {
	buf := make([]byte, len(line))
	if _, err := io.ReadFull(l.conn, buf); err != nil {
		return err
	}
	if string(buf) != line {
		return errors.New("another line than expected")
	}
	return nil
}

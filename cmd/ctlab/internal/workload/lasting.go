package workload

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

const (
	// lastingPause lies between two exchanges of a lasting connection.
	lastingPause = time.Second
	// lastingPatience is how long an exchange may take: TCP may repeat itself a
	// few times, as it would for a person at a terminal.
	lastingPatience = 5 * time.Second
)

// lasting is one long-lived connection.
type lasting struct {
	conn net.Conn
	lost bool
	line []byte
}

func (w *workload) openLasting(ctx context.Context) error {
	for i := range w.spec.Lasting {
		src := w.spec.Sources[i%len(w.spec.Sources)]
		l, err := dialLasting(ctx, src, netip.AddrPortFrom(w.target(src), w.spec.LinePort))
		if err != nil {
			return err
		}
		w.lasting = append(w.lasting, l)
	}
	if !w.spec.Session.IsValid() {
		return nil
	}
	var err error
	w.session, err = dialLasting(ctx, w.spec.Session, netip.AddrPortFrom(w.target(w.spec.Session), w.spec.SSHPort))
	return err
}

func dialLasting(ctx context.Context, src netip.Addr, dst netip.AddrPort) (*lasting, error) {
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0)),
		Timeout:   lastingPatience, KeepAlive: -1, // a keepalive would not be silent
	}
	conn, err := d.DialContext(ctx, "tcp", dst.String())
	if err != nil {
		return nil, fmt.Errorf("open lasting connection: %w", err)
	}
	l := &lasting{conn: conn, line: []byte("still there?\n")}
	if err := l.exchange(); err != nil {
		return nil, fmt.Errorf("use lasting connection: %w", err)
	}
	return l, nil
}

// talk exchanges a line a second until ctx ends or the connection is lost.
func (l *lasting) talk(ctx context.Context) {
	t := time.NewTicker(lastingPause)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := l.exchange(); err != nil {
			l.lost = true
			return
		}
	}
}

func (l *lasting) exchange() error {
	if err := l.conn.SetDeadline(time.Now().Add(lastingPatience)); err != nil {
		return err
	}
	if _, err := l.conn.Write(l.line); err != nil {
		return err
	}
	buf := make([]byte, len(l.line))
	for got := 0; got < len(buf); {
		n, err := l.conn.Read(buf[got:])
		if err != nil {
			return err
		}
		got += n
	}
	if string(buf) != string(l.line) {
		return errors.New("echo differs")
	}
	return nil
}

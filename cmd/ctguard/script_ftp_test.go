package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// listings FROM ADDR... has an FTP server listen at each address of the host and a client at FROM, a peer, get one
// listing after the other from it until the script ends, each on a data connection to a port that the server names
// (PASV, RFC 959).
func listings(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: listings FROM ADDR...")
	}
	from := place(ts, args[0])
	s := ts.Value(ofScript{}).(*script)
	end := make(chan struct{})
	ended := make(chan struct{}, len(args[1:]))
	for _, addr := range args[1:] {
		server, err := net.Listen("tcp", addr)
		ts.Check(err)
		ts.Defer(func() { server.Close() })
		go serveListings(server, place(ts, "host"))
		l := &line{name: fmt.Sprintf("listings %s from %s", args[0], addr)}
		s.lines = append(s.lines, l)
		go func() {
			defer func() { ended <- struct{}{} }()
			if err := inside(from, func() error { return l.listings(addr, end) }); err != nil {
				l.fault.Store(&err)
			}
		}()
	}
	ts.Defer(func() {
		close(end)
		for range args[1:] {
			<-ended
		}
	})
	served(ts, false, nil)
}

// serveListings answers every client until the listener is closed; data connections are to a network namespace.
func serveListings(server net.Listener, ns *os.File) {
	for {
		c, err := server.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = inside(ns, func() error { return serveListing(c) })
		}()
	}
}

// serveListing answers one PASV.
func serveListing(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(stallAfter))
	if _, err := c.Write([]byte("220 ready\r\n")); err != nil {
		return err
	}
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		return err
	}
	here := c.LocalAddr().(*net.TCPAddr).IP
	data, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: here})
	if err != nil {
		return err
	}
	defer data.Close()
	_ = data.SetDeadline(time.Now().Add(stallAfter))
	port := data.Addr().(*net.TCPAddr).Port
	where := strings.ReplaceAll(here.String(), ".", ",")
	if _, err := fmt.Fprintf(c, "227 Entering Passive Mode (%s,%d,%d).\r\n", where, port>>8, port&255); err != nil {
		return err
	}
	d, err := data.Accept()
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = d.Write([]byte("a file\r\n"))
	return err
}

// listings gets one listing after the other until the script ends.
func (l *line) listings(addr string, end <-chan struct{}) error {
	for {
		if err := getListing(addr); err != nil {
			return err
		}
		l.done.Add(1)
		select {
		case <-end:
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func getListing(addr string) error {
	c, err := net.DialTimeout("tcp", addr, stallAfter)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(stallAfter))
	lines := bufio.NewReader(c)
	if _, err := lines.ReadString('\n'); err != nil {
		return err
	}
	if _, err := c.Write([]byte("PASV\r\n")); err != nil {
		return err
	}
	answer, err := lines.ReadString('\n')
	if err != nil {
		return err
	}
	var a [4]byte
	var high, low int
	_, numbers, _ := strings.Cut(answer, "(")
	if _, err := fmt.Sscanf(numbers, "%d,%d,%d,%d,%d,%d", &a[0], &a[1], &a[2], &a[3], &high, &low); err != nil {
		return fmt.Errorf("%q: %w", answer, err)
	}
	d, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", net.IP(a[:]), high<<8|low), stallAfter)
	if err != nil {
		return fmt.Errorf("data connection: %w", err)
	}
	defer d.Close()
	_ = d.SetDeadline(time.Now().Add(stallAfter))
	if text, err := bufio.NewReader(d).ReadString('\n'); text != "a file\r\n" {
		return errors.Join(fmt.Errorf("the listing is %q", text), err)
	}
	return nil
}

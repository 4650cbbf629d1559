package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
)

// lineConn is a connection that is read by lines and by counted bytes, and
// written in one piece.
type lineConn struct {
	conn net.Conn
	r    *bufio.Reader
	out  []byte // not sent
	done func() bool
}

// dialLines connects; the connection ends with ctx.
func dialLines(ctx context.Context, addr string) (*lineConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	done := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // whoever uses it sees it
	return &lineConn{conn: conn, r: bufio.NewReaderSize(conn, 64<<10), done: done}, nil
}

func (c *lineConn) Close() error {
	if !c.done() {
		return nil
	}
	return c.conn.Close()
}

// flush sends what was added.
func (c *lineConn) flush() error {
	_, err := c.conn.Write(c.out)
	c.out = c.out[:0]
	return err
}

// line reads a line, valid until the next read.
func (c *lineConn) line() ([]byte, error) {
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	if len(line) < 2 {
		return nil, errors.New("an empty line")
	}
	return line[:len(line)-2], nil
}

// bytes appends n bytes to what is given, and drops the end of their line.
func (c *lineConn) bytes(to []byte, n int) ([]byte, error) {
	const bytesMax = 16 << 20
	if n > bytesMax {
		return nil, fmt.Errorf("%d bytes in one value", n)
	}
	begin := len(to)
	for cap(to) < begin+n {
		to = append(to[:cap(to)], 0)
	}
	to = to[:begin+n]
	if _, err := io.ReadFull(c.r, to[begin:]); err != nil {
		return nil, err
	}
	_, err := c.r.Discard(2)
	return to, err
}

package tests

import (
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// A proxy passes connections on and cuts each after a random number of bytes,
// wherever that falls in a frame.
type proxy struct {
	addr    string
	backend string // path of the unix socket behind it
	bytes   int    // a connection lives for up to so many, both ways together
	cuts    atomic.Int64

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	ended bool
}

// startProxy stands in front of a unix socket; it ends with the test.
func startProxy(t *testing.T, addr string, bytes int) *proxy {
	t.Helper()
	path := filepath.Join(dir(t), "p")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	p := &proxy{
		addr: "unix:" + path, backend: strings.TrimPrefix(addr, "unix:"), bytes: bytes,
		conns: make(map[net.Conn]struct{}),
	}
	var owned sync.WaitGroup
	owned.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			owned.Go(func() { p.pass(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		p.ended = true
		for c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		owned.Wait()
	})
	return p
}

// pass passes one connection on until it is cut or either side ends it.
func (p *proxy) pass(front net.Conn) {
	defer front.Close()
	back, err := net.Dial("unix", p.backend)
	if err != nil {
		return
	}
	defer back.Close()
	for _, c := range []net.Conn{front, back} {
		if !p.keep(c) {
			return
		}
		defer p.forget(c)
	}
	var left atomic.Int64
	left.Store(rand.Int64N(int64(p.bytes)))
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{front, back}, {back, front}} {
		both.Go(func() {
			defer front.Close()
			defer back.Close()
			if _, err := io.Copy(&cutter{way[1], &left}, way[0]); err == io.ErrShortWrite {
				p.cuts.Add(1)
			}
		})
	}
	both.Wait()
}

func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.conns[c] = struct{}{}
	}
	return !p.ended
}

func (p *proxy) forget(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// A cutter writes until nothing is left.
type cutter struct {
	net.Conn
	left *atomic.Int64
}

func (c *cutter) Write(b []byte) (int, error) {
	over := -c.left.Add(-int64(len(b)))
	if over <= 0 {
		return c.Conn.Write(b)
	}
	n, err := c.Conn.Write(b[:max(0, int64(len(b))-over)])
	if err == nil {
		err = io.ErrShortWrite
	}
	return n, err
}

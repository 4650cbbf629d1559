package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// brokenConn does something to what is written: it cuts the connection before
// byte cutAt, and inverts a bit of byte flipAt. Negative is never.
type brokenConn struct {
	net.Conn
	cutAt, flipAt int
	flip          byte
	written       int
}

func (b *brokenConn) Write(p []byte) (int, error) {
	if i := b.flipAt - b.written; b.flipAt >= 0 && i >= 0 && i < len(p) {
		p = bytes.Clone(p)
		p[i] ^= b.flip
	}
	if n := b.cutAt - b.written; b.cutAt >= 0 && n < len(p) {
		if _, err := b.Conn.Write(p[:max(n, 0)]); err != nil {
			return 0, err
		}
		b.written = b.cutAt
		return 0, b.Conn.Close()
	}
	n, err := b.Conn.Write(p)
	b.written += n
	return n, err
}

// fate is what became of one call.
type fate struct {
	request string
	ends    atomic.Int32 // how often done was called
	answer  string
	err     error
}

// conversation has each end call the other: short calls, one that waits until it
// is cancelled, and from the caller so many bytes that it gets a WINDOW. It ends with a Close.
type conversation struct {
	caller, called *Conn // nil where they did not meet
	errs           [2]error
	closed         error
	fates          []*fate
	served         sync.Map // request -> served
}

const cancelMe = "cancel me"

func answerTo(request string) string {
	return fmt.Sprintf("answer to %.10s of %d bytes", request, len(request))
}

// Serve implements Handler.
func (v *conversation) Serve(call *Call) {
	request := string(call.Body())
	v.served.Store(request, true)
	answer := []byte(answerTo(request))
	if strings.HasSuffix(request, cancelMe) {
		call.OnCancel(func() { call.Reply(answer) })
		return
	}
	call.Reply(answer)
}

func (v *conversation) start(c *Conn, request string) *Pending {
	f := &fate{request: request}
	v.fates = append(v.fates, f)
	return c.Start([]byte(request), func(answer []byte, err error) {
		f.answer, f.err = string(answer), err
		f.ends.Add(1)
	})
}

// hold runs the conversation. It returns when all of it has ended.
func (v *conversation) hold(a, b net.Conn) {
	cfg := Config{
		FrameBytesMax: helloBytesMax,
		WindowBytes:   2 * helloBytesMax,
		Identity:      []byte("one"),
		NewHandler:    func(*Conn) (Handler, error) { return v, nil },
	}
	var wait sync.WaitGroup
	wait.Go(func() { v.called, v.errs[1] = Accept(context.Background(), b, cfg) })
	v.caller, v.errs[0] = Connect(context.Background(), a, cfg)
	wait.Wait()
	for i, c := range []*Conn{v.caller, v.called} {
		if c == nil {
			continue
		}
		name := fmt.Sprint("from ", i, " ")
		v.start(c, name+"short")
		for j := range 3 * (1 - i) {
			v.start(c, fmt.Sprintf("%s%d %s", name, j, bytes.Repeat([]byte("x"), 1400)))
		}
		v.start(c, name+cancelMe).Cancel()
	}
	synctest.Wait()
	for i, c := range []*Conn{v.caller, v.called} {
		if c != nil {
			v.start(c, fmt.Sprint("last of ", i))
			if err := c.Close(); v.closed == nil {
				v.closed = err
			}
		}
	}
	synctest.Wait()
}

// check fails the test where a call has not ended once, with its own answer, or
// with an error that agrees with whether it was served.
func (v *conversation) check(t *testing.T) (answered int) {
	for _, f := range v.fates {
		if n := f.ends.Load(); n != 1 {
			t.Errorf("call %.20q ended %d times", f.request, n)
		}
		_, served := v.served.Load(f.request)
		switch {
		case f.err == nil:
			answered++
			if f.answer != answerTo(f.request) {
				t.Errorf("call %.20q: answer %q", f.request, f.answer)
			}
		case served && !errors.Is(f.err, ErrLost):
			t.Errorf("call %.20q was served and ended with %v", f.request, f.err)
		}
	}
	return answered
}

// wholeConversation holds a conversation that nothing disturbs, and returns how
// many bytes each end wrote.
func wholeConversation(t *testing.T) (bytes [2]int) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		one, two := &brokenConn{Conn: a, cutAt: -1, flipAt: -1}, &brokenConn{Conn: b, cutAt: -1, flipAt: -1}
		var v conversation
		v.hold(one, two)
		require.NoError(t, errors.Join(v.errs[0], v.errs[1], v.closed))
		require.Equal(t, len(v.fates)-1, v.check(t), "all but the one that comes after the Close")
		require.ErrorIs(t, v.caller.Err(), gearsfs.ErrClosed)
		require.ErrorIs(t, v.called.Err(), gearsfs.ErrClosed)
		bytes = [2]int{one.written, two.written}
	})
	return bytes
}

// TestCutAtEveryByte loses the connection after each number of bytes, in each
// direction. A goroutine that stays behind fails the bubble.
func TestCutAtEveryByte(t *testing.T) {
	for end, size := range wholeConversation(t) {
		for at := range size {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				a, b := net.Pipe()
				conns := [2]net.Conn{a, b}
				conns[end] = &brokenConn{Conn: conns[end], cutAt: at, flipAt: -1}
				var v conversation
				v.hold(conns[0], conns[1])
				v.check(t)
				for i, c := range []*Conn{v.caller, v.called} {
					if c == nil && v.errs[i] == nil || c != nil && c.Err() == nil {
						t.Errorf("end %d does not know", i)
					}
				}
				if d := time.Since(began); d > 10*time.Second {
					t.Errorf("it took %v to end", d)
				}
			})
			if t.Failed() {
				t.Fatalf("end %d was cut at byte %d", end, at)
			}
		}
	}
}

// TestFlipEveryByte damages each byte of each direction: never comes a wrong
// answer of it, and never a peaceful end.
func TestFlipEveryByte(t *testing.T) {
	for end, size := range wholeConversation(t) {
		for at := range size {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				conns := [2]net.Conn{a, b}
				conns[end] = &brokenConn{Conn: conns[end], cutAt: -1, flipAt: at, flip: 1 << (at % 8)}
				var v conversation
				v.hold(conns[0], conns[1])
				v.check(t)
				if v.errs[1-end] == nil && v.closed == nil && errors.Is([]*Conn{v.caller, v.called}[1-end].Err(), gearsfs.ErrClosed) {
					t.Error("nobody noticed")
				}
			})
			if t.Failed() {
				t.Fatalf("byte %d of end %d was damaged", at, end)
			}
		}
	}
}

package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/tests/bubble"
)

// narrowListener gives its connections small socket buffers.
type narrowListener struct{ net.Listener }

func (l narrowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		err = narrow(c)
	}
	return c, err
}

func narrow(c net.Conn) error {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var one, two error
	err = raw.Control(func(fd uintptr) {
		one = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, 32<<10)
		two = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 32<<10)
	})
	return errors.Join(err, one, two)
}

// TestFloodEachOther has both ends send far more than the sockets hold, all at
// once and without waiting, so that both would write for ever if either stopped
// reading to write.
func TestFloodEachOther(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			addr := Addr{Network: network, Address: "127.0.0.1:0"}
			if network == "unix" {
				addr = unixAddr(t)
			}
			ln, err := Listen(addr)
			require.NoError(t, err)
			defer ln.Close()
			var b net.Conn
			met := make(chan error)
			go func() {
				var err error
				b, err = narrowListener{ln}.Accept()
				met <- err
			}()
			a, err := net.Dial(network, ln.Address().Address)
			require.NoError(t, err)
			require.NoError(t, <-met)
			require.NoError(t, narrow(a))
			one, two := connect(t, a, b, serving(echo), serving(echo))

			const calls = 200
			var wait sync.WaitGroup
			var wrong atomic.Int32
			for _, c := range []*Conn{one, two} {
				for i := range calls {
					wait.Add(1)
					size := 4 + i*997%200_000
					c.Start(make([]byte, size), func(answer []byte, err error) {
						if err != nil || len(answer) != size {
							wrong.Add(1)
						}
						wait.Done()
					})
				}
			}
			wait.Wait()
			require.Zero(t, wrong.Load())
			require.NoError(t, one.Close())
			require.NoError(t, two.Close())
		})
	}
}

// TestSlowReader has a peer ask for a lot and read nothing. What is kept for it
// is bounded, its further calls are not served, others are served as ever; and
// when it reads it gets everything.
func TestSlowReader(t *testing.T) {
	const answerBytes = 10_000
	var served atomic.Int32
	cfg := Config{FrameBytesMax: 1 << 16, UnreadBytesMax: 1 << 20}
	cfg.NewHandler = func(*Conn) (Handler, error) {
		var serving sync.Mutex
		return HandlerFunc(func(call *Call) {
			if !serving.TryLock() {
				t.Error("two calls of one connection are served at once")
				return
			}
			defer serving.Unlock()
			served.Add(1)
			call.Reply(make([]byte, answerBytes))
			runtime.Gosched()
		}), nil
	}
	synctest.Test(t, func(t *testing.T) {
		slow, w := meetWire(t, cfg, false)
		other, called := pair(t, Config{}, cfg)
		const calls = 500
		for id := range uint64(calls) {
			w.send(frame{id: id, kind: kindRequest})
		}
		w.send(frame{id: 77, kind: kindCancel})
		synctest.Wait()
		before := served.Load()
		require.Less(t, before, int32(40), "a quarter of the limit holds 26")
		require.NoError(t, slow.Err())

		_, err := other.Call(t.Context(), nil)
		require.NoError(t, err)
		require.Equal(t, before+1, served.Load())

		go func() { // more of them come while those that waited are served
			for id := range uint64(calls) {
				w.send(frame{id: calls + id, kind: kindRequest})
			}
		}()
		for id := range uint64(2 * calls) {
			f := w.receive()
			require.Equal(t, kindResponse, f.kind)
			require.Equal(t, id, f.id)
			require.Len(t, f.body, answerBytes)
		}
		require.Equal(t, int32(2*calls+1), served.Load())
		w.Close()
		<-slow.Done()
		require.NoError(t, other.Close())
		require.NoError(t, called.Close())
	})
}

// While a call that had waited is handed to the handler no other one is.
func TestServesOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		goOn := make(chan struct{})
		c, w := meetWire(t, Config{FrameBytesMax: 1 << 16, UnreadBytesMax: 1 << 16, NewHandler: func(*Conn) (Handler, error) {
			return HandlerFunc(func(call *Call) {
				kept.Serve(call)
				if call.id == 2 {
					<-goOn
				}
				call.Reply(make([]byte, 20_000))
			}), nil
		}}, false)
		w.send(frame{id: 1, kind: kindRequest}, frame{id: 2, kind: kindRequest})
		require.Len(t, kept.take(), 1, "the other waits for the first answer to be read")
		require.Equal(t, uint64(1), w.receive().id)
		require.Len(t, kept.take(), 1)
		w.send(frame{id: 3, kind: kindRequest})
		require.Empty(t, kept.take())
		close(goOn)
		require.Equal(t, uint64(2), w.receive().id)
		require.Equal(t, uint64(3), w.receive().id)
		require.Len(t, kept.take(), 1)
		w.Close()
		<-c.Done()
	})
}

// A peer that reads nothing while large answers to calls that are being served
// come up loses its connection.
func TestUnreadAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		cfg := serving(&kept)
		cfg.FrameBytesMax, cfg.UnreadBytesMax = 1<<16, 1<<17
		c, w := meetWire(t, cfg, false)
		for id := range uint64(10) {
			w.send(frame{id: id, kind: kindRequest})
		}
		for i, call := range kept.take() {
			require.Equal(t, i > 4, c.Err() != nil, "call %d", i)
			call.Reply(make([]byte, 30_000))
		}
		<-c.Done()
		require.ErrorIs(t, c.Err(), gearsfs.ErrOverload)
		w.Close()
	})
}

// The last calls of a connection that is closed have certain outcomes: each was
// served and answered, or was not served and says so.
func TestCloseUnderLoad(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for round := range 20 {
			var served atomic.Int32
			conns := make(chan *Conn, 1)
			cfg := Config{NewHandler: func(c *Conn) (Handler, error) {
				conns <- c
				return HandlerFunc(func(call *Call) {
					served.Add(1)
					call.Reply(call.Body())
				}), nil
			}}
			c := dial(t, serveOn(t, network, cfg), Config{})
			closer := <-conns
			if round%2 == 0 {
				closer = c
			}
			var answered, refused, lost atomic.Int32
			var wait sync.WaitGroup
			half := make(chan struct{})
			for i := range 8 {
				wait.Go(func() {
					for j := 0; ; j++ {
						if i == 0 && j == 50 {
							close(half)
						}
						_, err := c.Call(t.Context(), []byte("x"))
						switch {
						case err == nil:
							answered.Add(1)
							continue
						case errors.Is(err, gearsfs.ErrClosed) && !errors.Is(err, ErrLost):
							refused.Add(1)
						default:
							t.Errorf("call: %v", err)
							lost.Add(1)
						}
						return
					}
				})
			}
			<-half
			require.NoError(t, closer.Close())
			wait.Wait()
			require.Equal(t, answered.Load(), served.Load())
			require.Equal(t, int32(8), refused.Load())
			<-c.Done()
			require.ErrorIs(t, c.Err(), gearsfs.ErrClosed)
		}
	}
}

func TestCloseWaitsForCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		var got outcomes
		a, b := pair(t, Config{}, serving(&kept))
		a.Start(nil, got.done("in flight"))
		call := kept.take()[0]
		closed := make(chan error)
		go func() { closed <- b.Close() }()
		synctest.Wait()
		a.Start(nil, got.done("late"))
		require.Equal(t, []string{failed("late", gearsfs.ErrClosed)}, got.take())
		require.ErrorIs(t, a.Err(), gearsfs.ErrClosed)
		_, err := b.Call(t.Context(), nil)
		require.ErrorIs(t, err, gearsfs.ErrClosed)
		select {
		case <-a.Done():
			t.Error("it ended with a call in flight")
		default:
		}
		call.Reply([]byte("done"))
		require.NoError(t, <-closed)
		<-a.Done()
		require.Equal(t, []string{"in flight: done"}, got.take())
		require.NoError(t, b.Close())
		require.NoError(t, a.Close())
	})
}

// A call that was under way when the connection was closed is not served.
func TestCallAfterGoaway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		c, w := meetWire(t, serving(&kept), false)
		closed := make(chan error)
		go func() { closed <- c.Close() }()
		require.Equal(t, goaway(nil), w.receive())
		w.send(frame{id: 1, kind: kindRequest})
		f := w.receive()
		require.Equal(t, kindFailure, f.kind)
		require.ErrorIs(t, goawayError(f.body), gearsfs.ErrClosed)
		w.send(goaway(nil))
		require.NoError(t, <-closed)
		require.Empty(t, kept.take())
	})
}

// What does not finish is cut when the time for it is over.
func TestCloseCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		var got outcomes
		a, b := pair(t, Config{}, serving(&kept))
		a.Start(nil, got.done("stuck"))
		told := false
		kept.take()[0].OnCancel(func() { told = true })
		began := time.Now()
		require.ErrorIs(t, a.Close(), context.DeadlineExceeded)
		require.Equal(t, 2*time.Second, time.Since(began))
		require.Equal(t, []string{failed("stuck", gearsfs.ErrClosed)}, got.take())
		<-b.Done()
		require.True(t, told)
		require.NoError(t, b.Close())
	})
}

// TestSilentPeer stops hearing from its peer at different moments.
func TestSilentPeer(t *testing.T) {
	for _, caller := range []bool{true, false} {
		for _, silentAfter := range []time.Duration{0, time.Second, time.Minute, 61 * time.Second} {
			t.Run(fmt.Sprint(caller, silentAfter), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, w := meetWire(t, Config{}, caller)
					began := time.Now()
					var last time.Duration // when it said something
					go func() {
						for {
							f := w.receive()
							if f.kind == 0 {
								return
							}
							if now := time.Since(began); f.kind == kindPing && now <= silentAfter {
								last = now
								w.send(frame{id: f.id, kind: kindPong})
							}
						}
					}()
					if silentAfter == time.Second {
						bubble.Pass(silentAfter) // last is the answering goroutine's until it rests
						last = time.Since(began)
						w.send(frame{kind: kindPing})
					}
					_, err := c.Call(t.Context(), nil)
					require.ErrorIs(t, err, ErrLost)
					require.ErrorIs(t, err, gearsfs.ErrNoNode)
					silent := time.Since(began) - last
					require.LessOrEqual(t, silent, 3*time.Second)
					require.GreaterOrEqual(t, silent, 2*time.Second)
					<-c.Done()
				})
			})
		}
	}
}

// A peer that stops reading, too, is found, with the writer stuck.
func TestStoppedPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := meetWire(t, Config{}, true)
		began := time.Now()
		_, err := c.Call(t.Context(), make([]byte, 10<<20))
		require.ErrorIs(t, err, gearsfs.ErrNoNode)
		require.LessOrEqual(t, time.Since(began), 4*time.Second)
		<-c.Done()
	})
}

// Two ends with nothing to say stay connected.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, serving(echo), serving(echo))
		bubble.Pass(time.Hour)
		for _, c := range []*Conn{a, b} {
			_, err := c.Call(t.Context(), nil)
			require.NoError(t, err)
		}
		require.NoError(t, a.Close())
		require.NoError(t, b.Close())
	})
}

// A slow link that takes minutes for a frame is not a silent peer.
func TestSlowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w := meetWire(t, Config{}, true)
		ended := make(chan error)
		began := time.Now()
		go func() {
			_, err := c.Call(t.Context(), make([]byte, 4<<20))
			ended <- err
		}()
		for left := int64(4<<20 + overheadBytes); left > 0; left -= 1 << 15 {
			bubble.Spend(time.Second)
			_, err := io.CopyN(io.Discard, w, min(left, 1<<15))
			require.NoError(t, err)
		}
		answer := frame{id: 1, kind: kindResponse, body: make([]byte, 4<<20)}.append(nil)
		for len(answer) > 0 {
			n := min(len(answer), 1<<17)
			_, err := w.Write(answer[:n])
			require.NoError(t, err)
			answer = answer[n:]
			bubble.Spend(2 * time.Second)
		}
		require.NoError(t, <-ended)
		require.Greater(t, time.Since(began), 100*time.Second)
		w.Close()
		<-c.Done()
	})
}

// Nor is a peer whose socket takes a little now and then: the last of a frame
// may be in the kernel for long.
func TestSlowSocket(t *testing.T) {
	ln, err := Listen(unixAddr(t))
	require.NoError(t, err)
	defer ln.Close()
	met := make(chan *wire, 1)
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			t.Error(err)
		}
		w := newWire(t, nc)
		w.receive()
		w.send(plainHello())
		met <- w
	}()
	const idle = 300 * time.Millisecond
	c, err := Dial(t.Context(), ln.Address(), Config{IdleTimeout: idle, PingInterval: idle / 6})
	require.NoError(t, err)
	w := <-met
	ended := make(chan error, 1)
	began := time.Now()
	c.Start(make([]byte, 1<<20), func(_ []byte, err error) { ended <- err })
	pace := time.NewTicker(idle / 4)
	defer pace.Stop()
	for left := int64(1<<20 + overheadBytes); left > 0; left -= 48 << 10 {
		<-pace.C
		_, err := io.CopyN(io.Discard, w, min(left, 48<<10))
		require.NoError(t, err)
	}
	w.send(frame{id: 1, kind: kindResponse})
	require.NoError(t, <-ended)
	require.Greater(t, time.Since(began), 4*idle)
	w.Close()
	<-c.Done()
}

// A frame whose length was damaged never becomes whole; it must not hide behind
// the sign of life that its bytes are.
func TestEndlessFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w := meetWire(t, Config{}, true)
		go func() {
			for w.receive().kind != 0 {
			}
		}()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			head := binary.BigEndian.AppendUint32(nil, 1000)
			for _, err := w.Write(head); err == nil; _, err = w.Write([]byte{1}) {
				bubble.Spend(time.Second)
			}
		}()
		began := time.Now()
		_, err := c.Call(t.Context(), nil)
		require.ErrorIs(t, err, gearsfs.ErrProtocol)
		require.LessOrEqual(t, time.Since(began), 4*time.Second)
		<-c.Done()
		<-ended
	})
}

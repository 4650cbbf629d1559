package transport

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// loneEnds is a connection whose poller knows no other, and its far end.
type loneEnds struct {
	*Conn
	far    *wirePeer
	poller *poller
}

// loneCalls does a test for both networks; a lone caller waits there for up to bound.
func loneCalls(t *testing.T, bound time.Duration, h Handler, do func(t *testing.T, l *loneEnds)) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := Addr{Network: "tcp", Address: "127.0.0.1:0"}
			if network == "unix" {
				addr = Addr{Network: "unix", Address: filepath.Join(t.TempDir(), "s")}
			}
			ln, err := net.Listen(addr.Network, addr.Address)
			require.NoError(t, err)
			t.Cleanup(func() { ln.Close() })
			addr.Address = ln.Addr().String()
			cfg := shared(serving(h))
			cfg.IdleTimeout = time.Hour
			dialled := make(chan *Conn, 1)
			go func() {
				c, err := Dial(context.Background(), addr, cfg)
				if err != nil {
					t.Error(err)
				}
				dialled <- c
			}()
			sock, err := ln.Accept()
			require.NoError(t, err)
			t.Cleanup(func() { sock.Close() })
			far := &wirePeer{Conn: sock, in: newFrameReader(frameBytesLimit)}
			far.greet(t)
			l := &loneEnds{Conn: <-dialled, far: far}
			require.NotNil(t, l.Conn)
			t.Cleanup(func() {
				ended, cancel := context.WithCancel(context.Background())
				cancel()
				l.Shutdown(ended) //nolint:errcheck // ctx's
			})
			l.poller = l.polled.poller
			l.poller.mu.Lock()
			l.poller.loneWait = bound
			l.poller.mu.Unlock()
			l.settles(t)
			do(t, l)
		})
	}
}

// settles waits until the poller reads nothing, so that who calls next is alone.
func (l *loneEnds) settles(t *testing.T) {
	l.until(t, func(p *poller) bool { return p.atRest && p.lone == nil })
}

func (l *loneEnds) until(t *testing.T, holds func(p *poller) bool) {
	require.Eventually(t, func() bool {
		l.poller.mu.Lock()
		defer l.poller.mu.Unlock()
		return holds(l.poller)
	}, time.Minute, time.Millisecond)
}

// claimed is how often somebody was alone.
func (l *loneEnds) claimed() int {
	l.poller.mu.Lock()
	defer l.poller.mu.Unlock()
	return l.poller.claims
}

// go1 begins a call on another goroutine, and returns what it will have returned
// once the far end has it.
func (l *loneEnds) go1(t *testing.T, ctx context.Context, body string) (request frame, out chan outcome) {
	out = make(chan outcome, 1)
	go func() {
		answer, err := l.Call(ctx, []byte(body))
		out <- outcome{answer, err}
	}()
	request = l.far.receive(t)
	require.Equal(t, kindRequest, request.kind)
	require.Equal(t, body, string(request.body))
	return request, out
}

// alone is go1 of a caller who is the lone one when it returns.
func (l *loneEnds) alone(t *testing.T, body string) (frame, chan outcome) {
	request, out := l.go1(t, t.Context(), body)
	l.until(t, func(p *poller) bool { return p.lone == l.polled })
	return request, out
}

func (l *loneEnds) answer(t *testing.T, request frame, out chan outcome) {
	l.far.send(t, frame{id: request.id, kind: kindResponse, body: request.body})
	requireAnswer(t, string(request.body), out)
}

func requireAnswer(t *testing.T, body string, out chan outcome) {
	o := <-out
	require.NoError(t, o.err)
	require.Equal(t, body, string(o.answer))
}

// TestLone: one call after the other is alone, also by Start, and behind the first
// read from it where more has come.
func TestLone(t *testing.T) {
	loneCalls(t, time.Hour, nil, func(t *testing.T, l *loneEnds) {
		for i := range 20 {
			request, out := l.alone(t, fmt.Sprint(i))
			l.answer(t, request, out)
		}
		require.Equal(t, 20, l.claimed())

		out := make(chan outcome, 1)
		ended := make(chan struct{})
		p := l.Start([]byte("started"), func(answer []byte, err error) { out <- outcome{answer, err} })
		go func() {
			p.Attend()
			close(ended)
		}()
		l.until(t, func(p *poller) bool { return p.lone != nil })
		l.answer(t, l.far.receive(t), out)
		<-ended
		p.Attend() // and has nothing to wait for
		require.Equal(t, 21, l.claimed())
	})
}

// TestLoneSecondCall: a call that begins while another is alone gets its answer,
// whichever comes first, and whether the first has ended by then.
func TestLoneSecondCall(t *testing.T) {
	for _, firstFirst := range []bool{true, false} {
		loneCalls(t, time.Hour, nil, func(t *testing.T, l *loneEnds) {
			one, outOne := l.alone(t, "one")
			two, outTwo := l.go1(t, t.Context(), "two")
			if firstFirst {
				l.answer(t, one, outOne)
				l.answer(t, two, outTwo)
			} else {
				l.answer(t, two, outTwo)
				l.answer(t, one, outOne)
			}
			require.Equal(t, 1, l.claimed())
			// Several that come in one piece, too.
			one, outOne = l.go1(t, t.Context(), "one")
			two, outTwo = l.go1(t, t.Context(), "two")
			l.far.send(t, frame{id: two.id, kind: kindResponse}, frame{id: one.id, kind: kindResponse})
			requireAnswer(t, "", outOne)
			requireAnswer(t, "", outTwo)
			require.Equal(t, 1, l.claimed())
			for range calmCalls { // one alone again, behind some that could have been
				l.settles(t)
				request, out := l.go1(t, t.Context(), "calm")
				l.answer(t, request, out)
			}
			l.settles(t)
			request, out := l.alone(t, "alone")
			l.answer(t, request, out)
		})
	}
}

// TestLoneBesideWaiting: nobody is alone on a connection with a call that waits.
func TestLoneBesideWaiting(t *testing.T) {
	loneCalls(t, time.Millisecond, nil, func(t *testing.T, l *loneEnds) {
		long, outLong := l.go1(t, t.Context(), "long")
		l.until(t, func(p *poller) bool { return p.claims == 1 && p.lone == nil })
		for range 2 * calmCalls {
			l.settles(t)
			out := make(chan outcome, 1)
			call := l.Start([]byte("a"), func(answer []byte, err error) { out <- outcome{answer, err} })
			request := l.far.receive(t)
			l.until(t, func(*poller) bool {
				l.mu.Lock()
				defer l.mu.Unlock()
				return !l.writing
			})
			require.False(t, l.poller.claim(call))
			l.answer(t, request, out)
		}
		l.answer(t, long, outLong)
	})
}

// TestLoneCancel: the wish to cancel is passed on while a caller is alone, and once
// its time is over where it is its ctx's.
func TestLoneCancel(t *testing.T) {
	loneCalls(t, time.Hour, nil, func(t *testing.T, l *loneEnds) {
		out := make(chan outcome, 1)
		p := l.Start([]byte("a"), func(answer []byte, err error) { out <- outcome{answer, err} })
		go p.Attend()
		request := l.far.receive(t)
		l.until(t, func(p *poller) bool { return p.lone != nil })
		p.Cancel()
		require.Equal(t, kindCancel, l.far.receive(t).kind)
		l.answer(t, request, out)
	})
	loneCalls(t, time.Millisecond, nil, func(t *testing.T, l *loneEnds) {
		ctx, cancel := context.WithCancel(t.Context())
		request, out := l.go1(t, ctx, "a")
		cancel()
		require.Equal(t, kindCancel, l.far.receive(t).kind)
		l.answer(t, request, out)
	})
}

// TestLoneLong: a caller keeps the connection to itself for a time only, gets its
// answer afterwards, though some of it came before, and the next do not try.
func TestLoneLong(t *testing.T) {
	loneCalls(t, time.Millisecond, nil, func(t *testing.T, l *loneEnds) {
		request, out := l.go1(t, t.Context(), "long")
		l.until(t, func(p *poller) bool { return p.claims == 1 && p.lone == nil })
		whole := frame{id: request.id, kind: kindResponse, body: bytes.Repeat([]byte("a"), 1<<20)}.append(nil)
		_, err := l.far.Write(whole[:len(whole)/2])
		require.NoError(t, err)
		_, err = l.far.Write(whole[len(whole)/2:])
		require.NoError(t, err)
		require.Len(t, (<-out).answer, 1<<20)
		for range calmCalls - 1 {
			l.settles(t)
			request, out := l.go1(t, t.Context(), "next")
			l.answer(t, request, out)
		}
		require.Equal(t, 1, l.claimed())
	})
}

// TestLonePieces: an answer that comes in pieces is read by a lone caller, and the
// rest of it by the poller where another call has begun.
func TestLonePieces(t *testing.T) {
	loneCalls(t, time.Hour, nil, func(t *testing.T, l *loneEnds) {
		request, out := l.alone(t, "a")
		whole := frame{id: request.id, kind: kindResponse, body: []byte("a")}.append(nil)
		for _, b := range whole {
			_, err := l.far.Write([]byte{b})
			require.NoError(t, err)
		}
		requireAnswer(t, "a", out)

		l.settles(t)
		one, outOne := l.alone(t, "one")
		two, outTwo := l.go1(t, t.Context(), "two")
		whole = frame{id: two.id, kind: kindResponse, body: []byte("two")}.append(nil)
		whole = frame{id: one.id, kind: kindResponse, body: []byte("one")}.append(whole)
		_, err := l.far.Write(whole[:headerBytes])
		require.NoError(t, err)
		l.until(t, func(p *poller) bool { return p.lone == nil })
		_, err = l.far.Write(whole[headerBytes:])
		require.NoError(t, err)
		requireAnswer(t, "one", outOne)
		requireAnswer(t, "two", outTwo)
	})
}

// TestLoneEnd: a lone caller is not kept waiting by the end of its connection,
// whoever ends it and how.
func TestLoneEnd(t *testing.T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for name, end := range map[string]func(*testing.T, *loneEnds){
		"cut":           func(_ *testing.T, l *loneEnds) { l.Shutdown(ended) }, //nolint:errcheck // ctx's
		"closed by far": func(_ *testing.T, l *loneEnds) { l.far.Close() },
		"broken":        func(t *testing.T, l *loneEnds) { l.far.send(t, frame{id: 1 << 40, kind: kindResponse}) },
		"damaged": func(t *testing.T, l *loneEnds) {
			_, err := l.far.Write(make([]byte, 100))
			require.NoError(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			loneCalls(t, time.Hour, nil, func(t *testing.T, l *loneEnds) {
				_, out := l.alone(t, "a")
				end(t, l)
				require.ErrorIs(t, (<-out).err, ErrLost)
				<-l.Done()
			})
		})
	}
	t.Run("in peace", func(t *testing.T) {
		loneCalls(t, time.Hour, nil, func(t *testing.T, l *loneEnds) {
			request, out := l.alone(t, "a")
			closed := make(chan error, 1)
			go func() { closed <- l.Shutdown(context.Background()) }()
			require.Equal(t, kindGoaway, l.far.receive(t).kind)
			l.far.send(t, goaway(nil))
			l.answer(t, request, out)
			require.NoError(t, l.far.Close())
			require.NoError(t, <-closed)
			require.ErrorIs(t, l.Err(), gearsfs.ErrClosed)
		})
	})
}

// hears hands on what it is told.
type hears struct {
	Handler
	hear func(string)
}

func (h hears) Notice(body []byte) { h.hear(string(body)) }

// TestLoneHears: what the far end says by itself is heard while a caller is alone,
// and afterwards.
func TestLoneHears(t *testing.T) {
	heard := make(chan string, 1)
	loneCalls(t, time.Hour, hears{echo, func(s string) { heard <- s }}, func(t *testing.T, l *loneEnds) {
		for range 3 {
			request, out := l.alone(t, "a")
			l.far.send(t, frame{kind: kindNotice, body: []byte("while")})
			require.Equal(t, "while", <-heard)
			l.far.send(t, frame{id: 7, kind: kindPing})
			require.Equal(t, kindPong, l.far.receive(t).kind)
			l.far.send(t, frame{id: 9, kind: kindRequest, body: []byte("b")})
			require.Equal(t, "b", string(l.far.receive(t).body))
			l.until(t, func(p *poller) bool { return p.lone == l.polled })
			l.far.send(t, frame{id: request.id, kind: kindResponse}, frame{kind: kindNotice, body: []byte("with")})
			requireAnswer(t, "", out)
			require.Equal(t, "with", <-heard)
			l.far.send(t, frame{kind: kindNotice, body: []byte("after")})
			require.Equal(t, "after", <-heard)
			l.settles(t)
		}
	})
}

// TestLoneRoom: who waits for room in the socket gets on while a caller is alone on
// it, and where that ends meanwhile.
func TestLoneRoom(t *testing.T) {
	const large = 8 << 20
	for _, before := range []bool{true, false} {
		loneCalls(t, time.Hour, nil, func(t *testing.T, l *loneEnds) {
			request, out := l.alone(t, "a")
			done := make(chan outcome, 1)
			l.Start(make([]byte, large), func(answer []byte, err error) { done <- outcome{answer, err} })
			l.until(t, func(*poller) bool { return l.polled.stuck })
			if before {
				l.answer(t, request, out)
			}
			second := l.far.receive(t)
			require.Len(t, second.body, large)
			if !before {
				l.until(t, func(p *poller) bool { return p.lone == l.polled })
				l.answer(t, request, out)
			}
			l.far.send(t, frame{id: second.id, kind: kindResponse})
			requireAnswer(t, "", done)
		})
	}
}

// TestLoneTurn: nobody has a connection to itself while the poller reads from some.
func TestLoneTurn(t *testing.T) {
	holds, hold := make(chan struct{}), make(chan struct{})
	h := hears{echo, func(string) { // against the rules
		holds <- struct{}{}
		<-hold
	}}
	loneCalls(t, time.Hour, h, func(t *testing.T, l *loneEnds) {
		other := dial(t, serveOn(t, "unix", shared(serving(echo))), shared(Config{}))
		require.Same(t, l.poller, other.polled.poller)
		l.far.send(t, frame{kind: kindNotice})
		<-holds
		out := make(chan outcome, 1)
		call := other.Start([]byte("a"), func(answer []byte, err error) { out <- outcome{answer, err} })
		require.False(t, l.poller.claim(call))
		hold <- struct{}{}
		requireAnswer(t, "a", out)
	})
}

type batcherHandler struct {
	Handler
	batch Batch
}

func (h batcherHandler) Batch() Batch { return h.batch }

// TestLoneBatch: what is told of batches is read by the poller alone.
func TestLoneBatch(t *testing.T) {
	loneCalls(t, time.Hour, batcherHandler{echo, &slowBatch{}}, func(t *testing.T, l *loneEnds) {
		for range 2 * calmCalls {
			l.settles(t)
			request, out := l.go1(t, t.Context(), "a")
			l.answer(t, request, out)
		}
		require.Zero(t, l.claimed())
	})
}

// TestLoneAmongOthers has callers come and go, so that calls are alone, cease to
// be, and take longer than they may.
func TestLoneAmongOthers(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for _, network := range []string{"tcp", "unix"} {
		addr := serveOn(t, network, shared(serving(HandlerFunc(func(call *Call) {
			if body := call.Body(); body[0]%32 == 0 {
				time.AfterFunc(time.Duration(body[1])*10*time.Microsecond, func() { call.Reply(body) })
			} else {
				call.Reply(body)
			}
		}))))
		conns := []*Conn{dial(t, addr, shared(Config{})), dial(t, addr, shared(Config{Unannounced: true}))}
		for i := range 300 {
			var wait sync.WaitGroup
			for range 1 + max(0, rnd.IntN(8)-4) {
				c, size := conns[rnd.IntN(2)], 2+rnd.IntN(100)
				if rnd.IntN(16) == 0 {
					size = 1 << (10 + rnd.IntN(11))
				}
				body := bytes.Repeat([]byte{byte(rnd.Uint32())}, size)
				body[1] = byte(i)
				wait.Go(func() {
					answer, err := c.Call(t.Context(), body)
					if err != nil || !bytes.Equal(answer, body) {
						t.Errorf("%d bytes, %v", len(answer), err)
					}
				})
			}
			wait.Wait()
		}
		p := conns[0].polled.poller
		p.mu.Lock()
		require.Positive(t, p.claims)
		p.mu.Unlock()
	}
}

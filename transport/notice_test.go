package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// told is a NoticeHandler that keeps what it is told, calls too, in order. It
// answers calls.
type told struct {
	mu  sync.Mutex
	got []string
}

func (h *told) Serve(call *Call) {
	h.add("call " + string(call.Body()))
	call.Reply(call.Body())
}

func (h *told) Notice(body []byte) { h.add("notice " + string(body)) }

func (h *told) add(s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got = append(h.got, s)
}

// take waits until nothing moves any more in the bubble.
func (h *told) take() []string {
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	got := h.got
	h.got = nil
	return got
}

// noticeFunc is a NoticeHandler without calls.
type noticeFunc func(body []byte)

func (f noticeFunc) Serve(call *Call)   { call.Reply(nil) }
func (f noticeFunc) Notice(body []byte) { f(body) }

// noticeHello is plainHello of a peer that knows notices.
func noticeHello() frame {
	h := hello{features: featureNotices, callsMax: 1 << 20, windowBytes: 1 << 30, frameBytes: 1 << 24}
	return frame{kind: kindHello, body: h.append(nil)}
}

// meetNoticeWire connects a Conn with a peer that the test plays, and that has
// said that it knows notices.
func meetNoticeWire(t testing.TB, cfg Config) (*Conn, *wire) {
	a, b := net.Pipe()
	w := newWire(t, b)
	go func() {
		w.receive()
		w.send(noticeHello())
	}()
	c, err := Connect(t.Context(), a, cfg)
	require.NoError(t, err)
	return c, w
}

// Notices and calls are handed over in the order in which they were sent, in
// both directions, whatever their sizes.
func TestNoticesStayInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var one, two told
		a, b := pair(t, serving(&one), serving(&two))
		rnd := rand.New(rand.NewPCG(1, 2))
		for _, end := range []struct {
			from *Conn
			at   *told
		}{{a, &two}, {b, &one}} {
			var want []string
			for i := range 500 {
				body := fmt.Sprintf("%d %s", i, bytes.Repeat([]byte("x"), rnd.IntN(1<<rnd.IntN(17))))
				if rnd.IntN(3) == 0 {
					want = append(want, "call "+body)
					end.from.Start([]byte(body), func(_ []byte, err error) {
						if err != nil {
							t.Errorf("call %d: %v", i, err)
						}
					})
				} else {
					want = append(want, "notice "+body)
					require.NoError(t, end.from.Notify([]byte(body)))
				}
			}
			require.Equal(t, want, end.at.take())
		}
		require.NoError(t, a.Close())
		require.NoError(t, b.Close())
	})
}

// A notice that was sent before the Close arrives, and none is sent after it.
func TestNoticeBeforeClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got told
		a, b := pair(t, Config{}, serving(&got))
		require.NoError(t, a.Notify([]byte("last")))
		require.NoError(t, a.Close())
		require.Equal(t, []string{"notice last"}, got.take())
		for _, c := range []*Conn{a, b} {
			err := c.Notify([]byte("late"))
			require.ErrorIs(t, err, ErrLost)
			require.ErrorIs(t, err, gearsfs.ErrClosed)
		}
		require.NoError(t, b.Close())
	})
}

// A Handler that is none for notices, or none at all, loses them, and the
// connection goes on.
func TestNoticeWithoutHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, cfg := range []Config{serving(echo), {}} {
			a, b := pair(t, Config{}, cfg)
			require.NoError(t, a.Notify([]byte("?")))
			_, err := a.Call(t.Context(), []byte("call"))
			require.Equal(t, cfg.NewHandler == nil, errors.Is(err, gearsfs.ErrUnknownOp), "%v", err)
			require.NoError(t, b.Err())
			require.NoError(t, a.Close())
			require.NoError(t, b.Close())
		}
	})
}

// An older peer is sent none.
func TestNoticeToOlderPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w := meetWire(t, Config{}, true)
		require.ErrorIs(t, c.Notify([]byte("?")), gearsfs.ErrUnknownOp)
		c.Start([]byte("call"), func([]byte, error) {})
		require.Equal(t, kindRequest, w.receive().kind)
		require.Zero(t, c.Features())
		w.Close()
		<-c.Done()
	})
}

// How a notice travels does not change.
func TestNoticeOnTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got told
		c, w := meetNoticeWire(t, serving(&got))
		require.NoError(t, c.Notify([]byte("hi")))
		raw := make([]byte, overheadBytes+2)
		_, err := io.ReadFull(w, raw)
		require.NoError(t, err)
		require.Equal(t, []byte{0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0x81, 'h', 'i'}, raw[:len(raw)-trailerBytes])
		w.send(frame{id: 9, kind: kindNotice}, frame{kind: kindNotice, body: []byte("ho")})
		require.Equal(t, []string{"notice ", "notice ho"}, got.take())
		w.Close()
		<-c.Done()
	})
}

// What a peer does not read is bounded, and freed as it reads.
func TestNoticeBytesMax(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 10
		size := 2*helloBytesMax + 1
		c, w := meetNoticeWire(t, Config{FrameBytesMax: 1 << 16, NoticeBytesMax: most * (overheadBytes + size)})
		require.ErrorIs(t, c.Notify(make([]byte, 1<<16)), gearsfs.ErrTooBig)
		for i := range uint64(most) {
			require.NoError(t, c.Notify(binary.BigEndian.AppendUint64(make([]byte, size-8), i)))
		}
		synctest.Wait()
		require.ErrorIs(t, c.Notify(nil), gearsfs.ErrOverload)
		require.NoError(t, c.Err(), "the connection goes on")
		for i := range uint64(5 * most) {
			f := w.receive()
			require.Equal(t, kindNotice, f.kind)
			require.Equal(t, i, binary.BigEndian.Uint64(f.body[size-8:]))
			synctest.Wait()
			require.NoError(t, c.Notify(binary.BigEndian.AppendUint64(make([]byte, size-8), most+i)))
		}
		require.ErrorIs(t, c.Notify(make([]byte, size)), gearsfs.ErrOverload)
		w.Close()
		<-c.Done()
		require.ErrorIs(t, c.Notify(nil), gearsfs.ErrNoNode)
	})
}

// TestNoticeFlood has both ends send from many goroutines at once more than
// their sockets hold. Each sender's notices arrive whole and in order, except
// those that it was told were not sent.
func TestNoticeFlood(t *testing.T) {
	const senders, each = 8, 3000
	type end struct {
		next [senders]uint32 // sent, and the least that may come
		done chan struct{}
		left int
	}
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			receiver := func(e *end) Config {
				return serving(noticeFunc(func(body []byte) {
					sender, i := body[0], binary.BigEndian.Uint32(body[1:])
					for _, b := range body[5:] {
						if b != byte(i) {
							t.Errorf("notice %d is damaged", i)
							break
						}
					}
					if i < e.next[sender] {
						t.Errorf("notice %d of %d came after %d", i, sender, e.next[sender])
					}
					e.next[sender] = i + 1
					if i == each {
						if e.left--; e.left == 0 {
							close(e.done)
						}
					}
				}))
			}
			ends := [2]*end{{done: make(chan struct{}), left: senders}, {done: make(chan struct{}), left: senders}}
			conns := make(chan *Conn, 1)
			cfg := receiver(ends[1])
			handler := cfg.NewHandler
			cfg.NewHandler = func(c *Conn) (Handler, error) {
				conns <- c
				return handler(c)
			}
			caller := dial(t, serveOn(t, network, cfg), receiver(ends[0]))
			var wait sync.WaitGroup
			for _, c := range []*Conn{caller, <-conns} {
				for sender := range byte(senders) {
					wait.Go(func() {
						for i := uint32(0); i <= each; {
							body := binary.BigEndian.AppendUint32([]byte{sender}, i)
							size := int(i) % 50 * 7
							if i%500 == 0 {
								size = 40 << 10
							}
							body = append(body, bytes.Repeat([]byte{byte(i)}, size)...)
							switch err := c.Notify(body); {
							case err == nil:
								i++
							case !errors.Is(err, gearsfs.ErrOverload):
								t.Errorf("notice: %v", err)
								return
							}
						}
					})
				}
			}
			wait.Wait()
			for _, e := range ends {
				<-e.done
			}
		})
	}
}

// TestNoticesOfLostConnection cuts a connection below a flood of notices. What
// arrives is a part of the flood without gaps, from its begin.
func TestNoticesOfLostConnection(t *testing.T) {
	for cut := 1000; cut < 100_000; cut += 9973 {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			var got told
			one, two := connect(t, &brokenConn{Conn: a, cutAt: cut, flipAt: -1}, b, Config{}, serving(&got))
			sent := 0
			var err error
			for ; err == nil; sent++ {
				err = one.Notify(fmt.Appendf(nil, "%d %s", sent, bytes.Repeat([]byte("x"), sent%1000)))
				if sent%10 == 0 {
					synctest.Wait()
				}
			}
			require.ErrorIs(t, err, ErrLost)
			require.ErrorIs(t, err, gearsfs.ErrNoNode)
			<-one.Done()
			<-two.Done()
			arrived := got.take()
			require.Less(t, len(arrived), sent)
			require.Greater(t, len(arrived), cut/1100)
			for i, notice := range arrived {
				require.Equal(t, fmt.Sprintf("notice %d %s", i, bytes.Repeat([]byte("x"), i%1000)), notice)
			}
		})
	}
}

// FuzzNotices says anything to a Conn. It gets the notices that are in it, and
// in any case the connection ends.
func FuzzNotices(f *testing.F) {
	notice := frame{kind: kindNotice, body: []byte("body")}.append(nil)
	f.Add(notice)
	f.Add(frame{id: 1, kind: kindRequest, body: []byte("call")}.append(notice))
	f.Add(frame{kind: 0x90}.append(frame{kind: kindNotice, body: make([]byte, directBytes)}.append(notice)))
	f.Add(goaway(nil).append(notice))
	f.Add(frame{kind: 10}.append(notice))
	f.Add(notice[:len(notice)-1])
	f.Fuzz(func(t *testing.T, stream []byte) {
		frames, _ := readAll(stream, 1<<16, len(stream)+1)
		var want []string
		for _, f := range frames {
			if f.kind == kindNotice {
				want = append(want, "notice "+string(f.body))
			}
		}
		var got told
		c, w := meetNoticeWire(t, Config{FrameBytesMax: 1 << 16, NewHandler: func(*Conn) (Handler, error) { return &got, nil }})
		go io.Copy(io.Discard, w) //nolint:errcheck // ends with the pipe
		w.Write(stream)           //nolint:errcheck // it may have hung up
		w.Close()
		<-c.Done()
		n := 0
		for _, s := range got.got {
			if s[0] != 'n' {
				continue
			}
			if n == len(want) || s != want[n] {
				t.Fatalf("notice %d is %q, of %q", n, s, want)
			}
			n++
		}
		if n < len(want) && errors.Is(c.Err(), gearsfs.ErrNoNode) {
			t.Fatalf("%d of %d notices came", n, len(want))
		}
	})
}

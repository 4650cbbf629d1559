package transport

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// shared is cfg for connections that the process's poller reads from.
func shared(cfg Config) Config {
	cfg.Shared = true
	return cfg
}

// wirePeer is the far end of a connection, made of frames; nobody reads from it
// unless the test does.
type wirePeer struct {
	net.Conn
	in *frameReader
}

// wireTo says hello to addr as an end that shares.
func wireTo(t testing.TB, addr Addr) *wirePeer {
	sock, err := net.Dial(addr.Network, addr.Address)
	require.NoError(t, err)
	t.Cleanup(func() { sock.Close() })
	w := &wirePeer{Conn: sock, in: newFrameReader(frameBytesLimit)}
	w.greet(t)
	return w
}

// greet exchanges HELLOs.
func (w *wirePeer) greet(t testing.TB) {
	w.send(t, frame{kind: kindHello, body: hello{
		features: featureNotices | featureShared, callsMax: 1 << 20, windowBytes: 1 << 30, frameBytes: 1 << 26,
	}.append(nil)})
	require.Equal(t, kindHello, w.receive(t).kind)
}

// send returns when the kernel has all frames.
func (w *wirePeer) send(t testing.TB, frames ...frame) {
	var b []byte
	for _, f := range frames {
		b = f.append(b)
	}
	_, err := w.Write(b)
	require.NoError(t, err)
}

func (w *wirePeer) receive(t testing.TB) frame {
	for {
		f, ok, err := w.in.next()
		require.NoError(t, err)
		if ok {
			return f
		}
		_, err = w.in.fill(w)
		require.NoError(t, err)
	}
}

// TestSharedBySome: a connection is shared where both ends say so, and works
// where one does or none.
func TestSharedBySome(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, of := range [][2]bool{{true, true}, {true, false}, {false, true}, {false, false}} {
			ends := make(chan *Conn, 1)
			cfg := Config{Shared: of[0], NewHandler: func(c *Conn) (Handler, error) {
				ends <- c
				return echo, nil
			}}
			c := dial(t, serveOn(t, network, cfg), Config{Shared: of[1]})
			answer, err := c.Call(t.Context(), []byte("a"))
			require.NoError(t, err)
			require.Equal(t, "a", string(answer))
			require.Equal(t, of[0] && of[1], c.polled != nil)
			require.Equal(t, of[0] && of[1], (<-ends).polled != nil)
			require.Zero(t, c.Features())
		}
	}
}

// TestOneWay: over a unix socket a poller of its own reads for the end that says so,
// which sends more than a socket holds, is answered, and hears of the peer's end.
func TestOneWay(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		ends := make(chan *Conn, 2)
		told := make(chan []byte, 64)
		addr := serveOn(t, network, Config{Shared: true, NewHandler: func(c *Conn) (Handler, error) {
			ends <- c
			return toldHandler{echo, told}, nil
		}})
		other := dial(t, addr, Config{OneWay: true})
		c := dial(t, addr, Config{OneWay: true, IdleTimeout: time.Hour})
		require.Equal(t, network == "unix", c.polled != nil)
		if c.polled != nil {
			require.NotSame(t, c.polled.poller, other.polled.poller)
		}
		<-ends
		far := <-ends
		require.Nil(t, far.polled)
		for i := range cap(told) {
			require.NoError(t, c.Notify(bytes.Repeat([]byte{byte(i)}, (i+1)<<12)))
		}
		answer, err := c.Call(t.Context(), []byte("a"))
		require.NoError(t, err)
		require.Equal(t, "a", string(answer))
		for i := range cap(told) {
			require.Equal(t, bytes.Repeat([]byte{byte(i)}, (i+1)<<12), <-told)
		}
		far.closeSock()
		<-c.Done()
		require.ErrorIs(t, c.Err(), gearsfs.ErrNoNode)
		_, err = other.Call(t.Context(), nil)
		require.NoError(t, err)
	}
}

type toldHandler struct {
	Handler
	told chan<- []byte
}

func (h toldHandler) Notice(body []byte) { h.told <- body }

// TestSharedEcho has many connections busy at once, some with more than a socket
// or a read holds, so that both ends wait for room and read in pieces.
func TestSharedEcho(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := serveOn(t, network, shared(serving(echo)))
			var wait sync.WaitGroup
			for i := range 32 {
				c := dial(t, addr, shared(Config{Unannounced: i%2 == 0}))
				calls, size := 200, i
				if i%8 == 0 {
					calls, size = 4, 1<<20
				}
				for range 2 {
					wait.Go(func() {
						for j := range calls {
							body := bytes.Repeat([]byte{byte(i), byte(j)}, size)
							answer, err := c.Call(t.Context(), body)
							if err != nil || !bytes.Equal(answer, body) {
								t.Errorf("connection %d, call %d: %d bytes, %v", i, j, len(answer), err)
							}
						}
					})
				}
			}
			wait.Wait()
		})
	}
}

// slowBatch waits when it is left by those who have served slow.
type slowBatch struct {
	slow    atomic.Bool
	waits   chan struct{} // told of each wait
	release chan struct{} // ends them
}

func (b *slowBatch) Enter() {}

func (b *slowBatch) LeaveYielding(yield func()) {
	if b.slow.Swap(false) {
		yield()
		b.waits <- struct{}{}
		<-b.release
	}
}

type slowHandler struct{ *slowBatch }

func (h slowHandler) Batch() Batch { return h.slowBatch }

func (h slowHandler) Serve(call *Call) {
	if string(call.Body()) == "slow" {
		h.slow.Store(true)
	}
	call.Reply(call.Body())
}

// TestSharedBatchThatWaits: while batches wait others are read from, whether they
// were there before or came meanwhile, and so is the connection itself.
func TestSharedBatchThatWaits(t *testing.T) {
	h := slowHandler{&slowBatch{waits: make(chan struct{}), release: make(chan struct{})}}
	addr := serveOn(t, "unix", shared(serving(h)))
	var all []*Conn
	for range 3 {
		c := dial(t, addr, shared(Config{}))
		all = append(all, c)
		_, err := c.Call(t.Context(), []byte("slow"))
		require.NoError(t, err)
		<-h.waits
		for _, c := range append(all, dial(t, addr, shared(Config{}))) {
			_, err := c.Call(t.Context(), []byte("quick"))
			require.NoError(t, err)
		}
	}
	close(h.release)
}

// TestSharedLoneBatch: a connection that is alone keeps the poller to itself while
// its batch waits, until another comes.
func TestSharedLoneBatch(t *testing.T) {
	h := slowHandler{&slowBatch{waits: make(chan struct{}), release: make(chan struct{})}}
	addr := serveOn(t, "unix", shared(serving(h)))
	lone := wireTo(t, addr)
	lone.send(t, frame{id: 1, kind: kindRequest, body: []byte("slow")})
	<-h.waits
	other := wireTo(t, addr)
	other.send(t, frame{id: 1, kind: kindRequest, body: []byte("quick")})
	require.Equal(t, "quick", string(other.receive(t).body))
	close(h.release)
	require.Equal(t, "slow", string(lone.receive(t).body))
}

// TestSharedFlood: one that has sent a lot gets one read, then the others have
// their turn.
func TestSharedFlood(t *testing.T) {
	const flood = 100
	hold, holds := make(chan struct{}), make(chan struct{})
	var served atomic.Int32
	before := make(chan int32, 1)
	addr := serveOn(t, "unix", shared(serving(HandlerFunc(func(call *Call) {
		switch body := call.Body(); {
		case string(body) == "hold": // breaks the rules, so that all of this comes in one round
			close(holds)
			<-hold
		case string(body) == "lone":
			before <- served.Load()
		case string(body) == "here":
		default:
			served.Add(1)
		}
		call.Reply(nil)
	}))))
	holder, flooder, lone := wireTo(t, addr), wireTo(t, addr), wireTo(t, addr)
	for _, w := range []*wirePeer{flooder, lone} { // else the poller may not know them yet
		w.send(t, frame{id: flood + 1, kind: kindRequest, body: []byte("here")})
		w.receive(t)
	}
	stopWatch()
	holder.send(t, frame{id: 1, kind: kindRequest, body: []byte("hold")})
	<-holds
	var frames []frame
	for i := range flood {
		frames = append(frames, frame{id: uint64(i + 1), kind: kindRequest, body: make([]byte, 1<<10)})
	}
	flooder.send(t, frames...)
	lone.send(t, frame{id: 1, kind: kindRequest, body: []byte("lone")})
	close(hold)
	lone.receive(t)
	require.LessOrEqual(t, <-before, int32(readBufferBytes>>10))
	for range flood {
		flooder.receive(t)
	}
}

// TestSharedStall: one that does not read its answers holds up nobody, and gets
// all of them when it does.
func TestSharedStall(t *testing.T) {
	const large = 8 << 20
	for _, network := range []string{"tcp", "unix"} {
		addr := serveOn(t, network, shared(serving(HandlerFunc(func(call *Call) {
			call.Reply(make([]byte, large))
		}))))
		stalls := wireTo(t, addr)
		stalls.send(t, frame{id: 1, kind: kindRequest}, frame{id: 2, kind: kindRequest})
		for range 3 {
			other := wireTo(t, addr)
			other.send(t, frame{id: 1, kind: kindRequest})
			require.Len(t, other.receive(t).body, large)
		}
		for range 2 {
			require.Len(t, stalls.receive(t).body, large)
		}
	}
}

// TestSharedEndWithLastBytes: the end of a stream is heard of though it came
// together with the last request, without asking for a sign of life.
func TestSharedEndWithLastBytes(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		conns := make(chan *Conn, 1)
		cfg := shared(Config{IdleTimeout: time.Hour, NewHandler: func(c *Conn) (Handler, error) {
			conns <- c
			return HandlerFunc(func(*Call) {}), nil // never replies
		}})
		hold, holds := make(chan struct{}), make(chan struct{})
		holder := wireTo(t, serveOn(t, "unix", shared(serving(HandlerFunc(func(call *Call) {
			close(holds)
			<-hold
			call.Reply(nil)
		})))))
		w := wireTo(t, serveOn(t, network, cfg))
		c := <-conns
		stopWatch()
		holder.send(t, frame{id: 1, kind: kindRequest})
		<-holds
		w.send(t, frame{id: 1, kind: kindRequest})
		require.NoError(t, w.Close())
		close(hold)
		<-c.Done()
		require.ErrorIs(t, c.Err(), gearsfs.ErrNoNode)
	}
}

// TestSharedIdle: a connection that says nothing is not looked at, however many there
// are.
func TestSharedIdle(t *testing.T) {
	const promised, descriptorsEach, others = 10_000, 2, 500
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)) // Go has raised it
	idle := min(promised, (int(min(limit.Cur, 1<<20))-others)/descriptorsEach)
	if idle < promised {
		t.Logf("%d connections: a process may have no more than %d descriptors", idle, limit.Cur)
	}
	var asked atomic.Int32
	patient := shared(Config{IdleTimeout: time.Hour, HandshakeTimeout: time.Minute}) // it pings nobody
	cfg := serving(askedHandler{echo, &asked})
	cfg.Shared, cfg.IdleTimeout, cfg.HandshakeTimeout = true, patient.IdleTimeout, patient.HandshakeTimeout
	for left := idle; left > 0; left -= ServerConnsMax { // the process has one poller for all
		addr := serveOn(t, "unix", cfg)
		for range min(left, ServerConnsMax) { // an answer is behind all of the handshake
			_, err := dial(t, addr, patient).Call(t.Context(), nil)
			require.NoError(t, err)
		}
	}
	c := dial(t, serveOn(t, "unix", cfg), patient)
	asked.Store(0)
	const calls, late = 100, 4 // events of the last handshakes
	for range calls {
		_, err := c.Call(t.Context(), []byte("a"))
		require.NoError(t, err)
	}
	require.LessOrEqual(t, int(asked.Load()), calls+late)
	require.GreaterOrEqual(t, asked.Load(), int32(calls))
}

type askedHandler struct {
	Handler
	asked *atomic.Int32
}

func (h askedHandler) Batch() Batch {
	h.asked.Add(1)
	return nil
}

// TestSharedCut cuts connections, at both ends and in the middle of calls, while
// others are made and used: no call gets another's answer, each has one outcome,
// and every descriptor is given back.
func TestSharedCut(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := serveOn(t, network, shared(serving(HandlerFunc(func(call *Call) {
				if string(call.Body()) == "cut" {
					call.Conn().closeSock()
					return
				}
				call.Reply(call.Body())
			}))))
			quick, cancel := context.WithCancel(context.Background())
			cancel()
			before := descriptors(t)
			var wait sync.WaitGroup
			for i := range 8 {
				wait.Go(func() {
					for j := range 40 {
						c, err := Dial(t.Context(), addr, shared(Config{}))
						if err != nil {
							t.Error(err)
							return
						}
						body := bytes.Repeat([]byte{byte(i + 1), byte(j)}, 40<<10)
						var calls sync.WaitGroup
						for k := range 4 {
							calls.Go(func() {
								answer, err := c.Call(t.Context(), body)
								if err == nil && !bytes.Equal(answer, body) {
									t.Errorf("connection %d of %d, call %d: another answer", j, i, k)
								}
							})
						}
						if j%2 == 0 {
							c.Start([]byte("cut"), func(_ []byte, err error) {
								if err == nil {
									t.Error("a cut connection has answered")
								}
							})
						} else if err := c.Shutdown(quick); err != nil && !errors.Is(err, context.Canceled) {
							t.Error(err)
						}
						calls.Wait()
						if j%2 == 0 {
							<-c.Done()
						}
					}
				})
			}
			wait.Wait()
			require.Eventually(t, func() bool { return descriptors(t) <= before }, time.Minute, time.Millisecond)
		})
	}
}

func descriptors(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(list)
}

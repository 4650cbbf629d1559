package transport

import (
	"encoding/binary"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// gates is a Handler whose calls wait as long as the test wants, where they say so.
type gates struct {
	entered chan *Call    // the calls that wait
	leave   chan struct{} // lets one of them go on
}

func newGates() gates { return gates{entered: make(chan *Call), leave: make(chan struct{})} }

func (g gates) Serve(call *Call) {
	if string(call.Body()) == "wait" {
		g.entered <- call
		<-g.leave
	}
	call.Reply(call.Body())
}

func request(id int, body string) frame {
	return frame{id: uint64(id), kind: kindRequest, body: []byte(body)}
}

// requireEcho is the answer to a request.
func requireEcho(t *testing.T, w *wirePeer, id int, body string) {
	f := w.receive(t)
	require.Equal(t, kindResponse, f.kind)
	require.Equal(t, uint64(id), f.id)
	require.Equal(t, body, string(f.body))
}

// known is wireTo behind which the poller reads from the connection, and each call sets
// its watch.
func known(t *testing.T, addr Addr) *wirePeer {
	w := wireTo(t, addr)
	w.send(t, request(1<<20, "here"))
	requireEcho(t, w, 1<<20, "here")
	everyCall(1)
	return w
}

// everyCall has one of n calls set the watch of the process's poller.
func everyCall(n int32) *poller {
	pollers.mu.Lock()
	p := pollers.p
	pollers.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rare = n
	if p.unset.Load() > 0 {
		p.unset.Store(n)
	}
	return p
}

// stopWatch has the process's poller look by itself no more: one look, that the
// timer is set for, may come, and gives no turn away.
func stopWatch() *poller {
	pollers.mu.Lock()
	p := pollers.p
	pollers.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.period = time.Hour
	if p.timer != nil {
		p.timer.Reset(p.period)
	}
	return p
}

// looks looks as the timer does, so often that who handles something loses its turn.
func (p *poller) looks() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lookLocked()
	p.lookLocked()
}

// TestWatch: calls that wait hold up other connections no more, whether those were
// there or came meanwhile, and are answered when they are done.
func TestWatch(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		g := newGates()
		addr := serveOn(t, network, shared(serving(g)))
		quick := known(t, addr)
		var slow []*wirePeer
		for i := range 4 {
			w := wireTo(t, addr)
			slow = append(slow, w)
			w.send(t, request(1, "wait"))
			<-g.entered
			for _, other := range []*wirePeer{quick, wireTo(t, addr)} {
				other.send(t, request(i, "quick"))
				requireEcho(t, other, i, "quick")
			}
		}
		for range slow {
			g.leave <- struct{}{}
		}
		for _, w := range slow {
			requireEcho(t, w, 1, "wait")
			w.send(t, request(2, "again"))
			requireEcho(t, w, 2, "again")
		}
	}
}

// TestWatchFirst: a call that waits where no other connection is holds up none that
// comes.
func TestWatchFirst(t *testing.T) {
	g := newGates()
	addr := serveOn(t, "unix", shared(serving(g)))
	w := wireTo(t, addr)
	w.send(t, request(1, "wait"))
	<-g.entered
	other := wireTo(t, addr)
	other.send(t, request(1, "quick"))
	requireEcho(t, other, 1, "quick")
	g.leave <- struct{}{}
	requireEcho(t, w, 1, "wait")
}

// TestWatchOneConnection: what was answered before a call that waits leaves while it
// does; what comes behind it is served behind it, and so is the end of the stream.
func TestWatchOneConnection(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		g := newGates()
		conns := make(chan *Conn, 2)
		cfg := shared(Config{IdleTimeout: time.Hour, NewHandler: func(c *Conn) (Handler, error) {
			conns <- c
			return g, nil
		}})
		addr := serveOn(t, network, cfg)
		other := known(t, addr)
		<-conns
		w := wireTo(t, addr)
		c := <-conns
		w.send(t, request(1, "before"), request(2, "wait"), request(3, "behind"))
		<-g.entered
		requireEcho(t, w, 1, "before")
		w.send(t, request(4, "wait"))
		other.send(t, request(1, "quick"))
		requireEcho(t, other, 1, "quick")
		select {
		case <-g.entered:
			t.Fatal("two calls of a connection at once")
		default:
		}
		g.leave <- struct{}{}
		requireEcho(t, w, 2, "wait")
		requireEcho(t, w, 3, "behind")
		<-g.entered
		other.send(t, request(2, "quick"))
		requireEcho(t, other, 2, "quick")
		require.NoError(t, w.Close())
		other.send(t, request(3, "quick"))
		requireEcho(t, other, 3, "quick")
		g.leave <- struct{}{}
		<-c.Done()
	}
}

// TestWatchRound: those that were to be read in the same round are read by who gets
// the turn, though nothing more comes over them.
func TestWatchRound(t *testing.T) {
	g := newGates()
	addr := serveOn(t, "unix", shared(serving(g)))
	first, second, third, flooder := known(t, addr), known(t, addr), known(t, addr), known(t, addr)
	p := stopWatch()
	first.send(t, request(1, "wait"))
	<-g.entered
	var flood []frame
	for i := range 100 {
		flood = append(flood, request(i, string(make([]byte, 1<<10))))
	}
	flooder.send(t, flood...)
	second.send(t, request(1, "wait"))
	third.send(t, request(1, "quick"))
	g.leave <- struct{}{} // and all of the others come in one round
	<-g.entered
	p.looks()
	requireEcho(t, third, 1, "quick")
	for i := range flood {
		requireEcho(t, flooder, i, string(flood[i].body))
	}
	g.leave <- struct{}{}
	requireEcho(t, first, 1, "wait")
	requireEcho(t, second, 1, "wait")
}

// countedBatch counts who has entered and left it.
type countedBatch struct {
	gates
	in, out atomic.Int32
}

func (b *countedBatch) Batch() Batch { return b }

func (b *countedBatch) Enter() { b.in.Add(1) }

func (b *countedBatch) LeaveYielding(func()) { b.out.Add(1) }

// TestWatchBatch: a batch does not wait for a call that does, and is left once.
func TestWatchBatch(t *testing.T) {
	b := &countedBatch{gates: newGates()}
	addr := serveOn(t, "unix", shared(serving(b)))
	w, other := known(t, addr), known(t, addr)
	left := func() bool { return b.in.Load() == b.out.Load() }
	require.Eventually(t, left, time.Minute, time.Millisecond)
	w.send(t, request(1, "wait"))
	<-b.entered
	require.Eventually(t, left, time.Minute, time.Millisecond)
	b.leave <- struct{}{}
	requireEcho(t, w, 1, "wait")
	for i := range 10 {
		other.send(t, request(i, "quick"))
		requireEcho(t, other, i, "quick")
	}
	require.Eventually(t, left, time.Minute, time.Millisecond)
}

// TestWatchClose: a server that is closed while calls wait waits for them, and leaves
// no goroutine behind.
func TestWatchClose(t *testing.T) {
	before := runtime.NumGoroutine()
	g := newGates()
	cfg := shared(serving(g))
	cfg.CloseTimeout = time.Millisecond
	ln, err := Listen(Addr{Network: "tcp", Address: "127.0.0.1:0"})
	require.NoError(t, err)
	s, err := Serve(ln, cfg)
	require.NoError(t, err)
	quick := known(t, ln.Address())
	const slow = 3
	for i := range slow {
		wireTo(t, ln.Address()).send(t, request(1, "wait"))
		<-g.entered
		quick.send(t, request(i, "quick"))
		requireEcho(t, quick, i, "quick")
	}
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	quick.receive(t) // GOAWAY
	for range slow {
		select {
		case <-closed:
			t.Fatal("a call is being served")
		default:
		}
		g.leave <- struct{}{}
	}
	require.NoError(t, <-closed)
	require.Nil(t, pollers.p)
	for runtime.NumGoroutine() > before { // those of other tests may end, too
		runtime.Gosched()
	}
}

// TestWatchRests: where nothing is called the watch looks no more, what is no call
// does not wake it, and calls that do not wait keep the turn.
func TestWatchRests(t *testing.T) {
	g := newGates()
	addr := serveOn(t, "unix", shared(serving(g)))
	w := known(t, addr)
	known(t, addr)
	pollers.mu.Lock()
	p := pollers.p
	pollers.mu.Unlock()
	rests := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return !p.watching && p.unset.Load() > 0
	}
	require.Eventually(t, rests, time.Minute, time.Millisecond)
	w.send(t, frame{id: 1, kind: kindPing})
	require.Equal(t, kindPong, w.receive(t).kind)
	require.True(t, rests())

	p.mu.Lock()
	p.period = time.Hour
	p.mu.Unlock()
	w.send(t, request(1, "wait"))
	<-g.entered
	require.False(t, rests())
	g.leave <- struct{}{}
	requireEcho(t, w, 1, "wait")
	for i := range 100 {
		p.mu.Lock()
		p.lookLocked()
		spare := p.spare
		p.mu.Unlock()
		require.Nil(t, spare)
		w.send(t, request(i, "quick"))
		requireEcho(t, w, i, "quick")
	}
}

// TestWatchSeldom: where calls are rare most of them set no timer.
func TestWatchSeldom(t *testing.T) {
	addr := serveOn(t, "unix", shared(serving(newGates())))
	w := known(t, addr)
	known(t, addr)
	p := everyCall(rareCalls)
	watching := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.watching
	}
	require.Eventually(t, func() bool { return !watching() }, time.Minute, time.Millisecond)
	p = everyCall(rareCalls)
	p.mu.Lock()
	p.period = time.Hour
	p.mu.Unlock()
	for i := range rareCalls - 1 {
		w.send(t, request(i, "quick"))
		requireEcho(t, w, i, "quick")
		require.False(t, watching())
	}
	w.send(t, request(rareCalls, "quick"))
	requireEcho(t, w, rareCalls, "quick")
	require.True(t, watching())
}

// TestWatchOrder: whenever turns are taken away, each connection's calls are served in
// order, never two at once, and all of them.
func TestWatchOrder(t *testing.T) {
	const conns, calls = 12, 400
	var p *poller // of both ends
	cfg := shared(Config{NewHandler: func(*Conn) (Handler, error) {
		var busy atomic.Bool
		next := uint64(0) // without a lock: the race detector watches, too
		return HandlerFunc(func(call *Call) {
			if busy.Swap(true) {
				t.Error("two calls at once")
			}
			if n := binary.BigEndian.Uint64(call.Body()); n != next {
				t.Errorf("call %d is served instead of %d", n, next)
			}
			next++
			if next%3 == 0 {
				p.relieve()
				runtime.Gosched()
			}
			call.Reply(call.Body())
			busy.Store(false)
		}), nil
	}})
	addr := serveOn(t, "unix", cfg)
	all := make([]*Conn, conns)
	for i := range all {
		all[i] = dial(t, addr, Config{Shared: true, Unannounced: i%2 == 0})
	}
	p = stopWatch()
	var wait sync.WaitGroup
	for i, c := range all {
		wait.Go(func() {
			var answers sync.WaitGroup
			for n := range calls {
				answers.Add(1)
				c.Start(binary.BigEndian.AppendUint64(nil, uint64(n)), func(answer []byte, err error) {
					if err != nil || binary.BigEndian.Uint64(answer) != uint64(n) {
						t.Errorf("connection %d, call %d: %q, %v", i, n, answer, err)
					}
					answers.Done()
				})
				if n%(i+1) == 0 {
					answers.Wait()
				}
			}
			answers.Wait()
		})
	}
	wait.Wait()
}

// relieve takes the turn from who handles something.
func (p *poller) relieve() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := p.state.Load(); n%2 == 1 {
		p.relieveLocked(n)
	}
}

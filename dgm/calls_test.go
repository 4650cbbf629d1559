package dgm

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/tests/bubble"
	"github.com/gearsfs/gearsfs/wire"
)

// scriptRoute hands out links that the test makes, one after the other.
type scriptRoute struct {
	links chan *scriptLink
	mu    sync.Mutex
	hints []string
}

func (s *scriptRoute) told(resp *wire.Response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hints = append(s.hints, resp.Leader)
}

func (s *scriptRoute) connect(ctx context.Context, how *search) (link, *wire.Response, error) {
	return how.single(ctx, func(ctx context.Context) (link, error) {
		select {
		case l := <-s.links:
			return l, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
}

// scriptLink welcomes and keeps what it is asked for the test to answer.
type scriptLink struct {
	lossy
	lending bool
	gate    chan struct{} // where not nil, nothing starts until it is closed
	mu      sync.Mutex
	kept    []*asked
}

type asked struct {
	req       *wire.Request
	done      func(*wire.Response)
	cancelled atomic.Bool
}

func (a *asked) cancel(error) { a.cancelled.Store(true) }

// asked is what the link was asked so far.
func (l *scriptLink) asked() []*asked {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.kept)
}

func newScriptLink(lending bool) *scriptLink { return &scriptLink{lossy: newLossy(), lending: lending} }

func (l *scriptLink) lends() bool { return l.lending }
func (l *scriptLink) why() error  { return gearsfs.ErrNoNode }

func (l *scriptLink) start(req *wire.Request, done func(*wire.Response)) canceller {
	if h := req.GetHello(); h != nil {
		minted := h.SessionMinted
		if minted == 0 {
			minted = 1
		}
		done(&wire.Response{Welcome: &wire.Welcome{SessionMinted: minted, SessionSalt: 1}})
		return nil
	}
	if req.GetGoodbye() != nil {
		done(&wire.Response{})
		return nil
	}
	if l.gate != nil {
		<-l.gate
	}
	a := &asked{req: req, done: done}
	l.mu.Lock()
	l.kept = append(l.kept, a)
	l.mu.Unlock()
	return a
}

// scripted makes a Remote that has a link, in the bubble of a test.
func scripted(t *testing.T, opts RemoteOptions, first *scriptLink) (*Remote, *scriptRoute) {
	route := &scriptRoute{links: make(chan *scriptLink, 8)}
	route.links <- first
	r, err := newRemote(t.Context(), opts, route)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r, route
}

func later[T any](f func() (T, error)) (out chan T, failed chan error) {
	out, failed = make(chan T, 1), make(chan error, 1)
	go func() {
		v, err := f()
		if err != nil {
			failed <- err
			return
		}
		out <- v
	}()
	return out, failed
}

// TestLentUntilDone: what a caller passes in is its own again when the call
// returns, so it does not while a volume of this process still uses it.
func TestLentUntilDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newScriptLink(true), newScriptLink(false)
		r, route := scripted(t, RemoteOptions{}, first)
		data := []byte("payload")
		out, failed := later(func() (gearsfs.Attr, error) { return r.Write(t.Context(), 7, 0, data) })
		synctest.Wait()
		route.links <- second
		first.lose()
		bubble.Pass(backoffMax)
		require.Len(t, second.asked(), 1)
		lent, again := first.asked()[0], second.asked()[0]
		require.NotSame(t, lent.req.GetChange(), again.req.GetChange(), "an attempt is a copy")
		require.NotSame(t, lent.req.GetChange().Command, again.req.GetChange().Command)
		require.Equal(t, lent.req.GetChange().Command.Seq, again.req.GetChange().Command.Seq)
		require.False(t, lent.req.GetChange().Retry)
		require.True(t, again.req.GetChange().Retry)
		again.done(&wire.Response{Answer: &wire.Answer{Attr: &wire.Attr{Ino: 7}}})
		synctest.Wait()
		require.Empty(t, out, "the first volume may still read the payload")
		lent.done(failure(gearsfs.ErrNotLeader))
		synctest.Wait()
		require.Empty(t, failed)
		require.Equal(t, gearsfs.Ino(7), (<-out).Ino)
	})
}

// What is sent again is sent before what is new: a put that had to wait for room
// would be taken for one that its session has given up.
func TestAgainBeforeNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newScriptLink(false), newScriptLink(false)
		second.gate = make(chan struct{})
		r, route := scripted(t, RemoteOptions{}, first)
		put := func() {
			later(func() (PutResult, error) {
				return r.Put(t.Context(), Put{File: gearsfs.At("/f"), Key: "k", Records: []gearsfs.NewRecord{{}}})
			})
			synctest.Wait()
		}
		put()
		put()
		route.links <- second
		first.lose()
		bubble.Pass(backoffMax)
		put() // while the first is being sent again
		put()
		require.Empty(t, second.asked())
		close(second.gate)
		synctest.Wait()
		put()
		var seqs []uint64
		for _, a := range second.asked() {
			seqs = append(seqs, a.req.GetChange().Command.Seq)
			a.done(&wire.Response{Answer: &wire.Answer{}})
		}
		require.Len(t, seqs, 5)
		require.IsIncreasing(t, seqs)
	})
}

// TestCancelledWaitsForItsOwnVolume, however long that takes to say what became
// of the change; another node has cancelPatience.
func TestCancelledWaitsForItsOwnVolume(t *testing.T) {
	for _, lending := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l := newScriptLink(lending)
			r, _ := scripted(t, RemoteOptions{}, l)
			ctx, cancel := context.WithCancel(t.Context())
			out, failed := later(func() (gearsfs.Attr, error) { return r.Write(ctx, 7, 0, []byte("x")) })
			synctest.Wait()
			cancel()
			synctest.Wait()
			require.True(t, l.asked()[0].cancelled.Load())
			bubble.Pass(10 * cancelPatience)
			if !lending {
				require.ErrorIs(t, <-failed, gearsfs.ErrMaybe)
				return
			}
			require.Empty(t, failed)
			l.asked()[0].done(&wire.Response{Answer: &wire.Answer{Attr: &wire.Attr{Ino: 7}}})
			synctest.Wait()
			require.Len(t, out, 1, "the true outcome")
		})
	}
}

// TestGiveUp: calls wait for a node for so long and no longer, also those that
// come later, and the next node serves.
func TestGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := newScriptLink(false)
		r, route := scripted(t, RemoteOptions{GiveUp: 10 * time.Second}, first)
		_, sent := later(func() (gearsfs.Attr, error) { return r.Write(t.Context(), 7, 0, []byte("x")) })
		_, asked := later(func() (gearsfs.Attr, error) { return r.GetAttr(t.Context(), 7) })
		synctest.Wait()
		first.lose()
		synctest.Wait()
		_, unsent := later(func() (gearsfs.Attr, error) { return r.Write(t.Context(), 7, 0, []byte("y")) })
		bubble.Pass(9 * time.Second)
		require.Empty(t, append([]error{}, drain(sent, asked, unsent)...))
		bubble.Pass(1001 * time.Millisecond)
		require.ErrorIs(t, <-sent, gearsfs.ErrMaybe)
		require.ErrorIs(t, <-asked, gearsfs.ErrNoNode)
		require.ErrorIs(t, <-unsent, gearsfs.ErrNoNode)
		_, late := later(func() (gearsfs.Attr, error) { return r.GetAttr(t.Context(), 7) })
		bubble.Pass(time.Second)
		require.ErrorIs(t, <-late, gearsfs.ErrNoNode)

		second := newScriptLink(false)
		route.links <- second
		out, _ := later(func() (gearsfs.Attr, error) { return r.GetAttr(t.Context(), 7) })
		bubble.Pass(backoffMax)
		require.Len(t, second.asked(), 1, "what was given up is not asked again")
		second.asked()[0].done(attrResponse(&wire.Attr{Ino: 7}))
		require.Equal(t, gearsfs.Ino(7), (<-out).Ino)
	})
}

// TestPatient: a change that nobody waits for is made when a node is there again,
// however long that takes, and under its number.
func TestPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := newScriptLink(false)
		r, route := scripted(t, RemoteOptions{GiveUp: 10 * time.Second}, first)
		patient := WithOnce(t.Context(), &Once{Patient: true})
		out, failed := later(func() (gearsfs.Attr, error) { return r.Write(patient, 7, 0, []byte("x")) })
		synctest.Wait()
		require.Len(t, first.asked(), 1)
		first.lose()
		bubble.Pass(time.Hour)
		require.Empty(t, drain(failed))

		second := newScriptLink(false)
		route.links <- second
		bubble.Pass(backoffMax)
		require.Len(t, second.asked(), 1)
		again := second.asked()[0]
		require.Equal(t, first.asked()[0].req.GetChange().Command.Seq, again.req.GetChange().Command.Seq)
		again.done(attrResponse(&wire.Attr{Ino: 7}))
		require.Equal(t, gearsfs.Ino(7), (<-out).Ino)
	})
}

func drain(errs ...chan error) (out []error) {
	for _, c := range errs {
		select {
		case err := <-c:
			out = append(out, err)
		default:
		}
	}
	return out
}

// TestNotLeaderGoesElsewhere at once the first time; where node after node
// welcomes and does not lead, it waits longer each time.
func TestNotLeaderGoesElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := newScriptLink(false)
		r, route := scripted(t, RemoteOptions{}, first)
		known, _ := later(func() (gearsfs.Attr, error) { return r.GetAttr(t.Context(), 7) })
		synctest.Wait()
		first.asked()[0].done(attrResponse(&wire.Attr{Ino: 7}))
		<-known
		out, failed := later(func() (gearsfs.Attr, error) { return r.GetAttr(t.Context(), 7) })
		synctest.Wait()
		began := time.Now()
		elsewhere := failure(gearsfs.ErrNotLeader)
		elsewhere.Leader = "unix:/there"
		next := newScriptLink(false)
		route.links <- next
		first.asked()[1].done(elsewhere)
		synctest.Wait()
		require.Len(t, next.asked(), 1)
		require.Zero(t, time.Since(began), "at once")
		route.mu.Lock()
		require.Contains(t, route.hints, "unix:/there")
		route.mu.Unlock()
		for range 10 {
			last := next
			next = newScriptLink(false)
			route.links <- next
			last.asked()[0].done(failure(gearsfs.ErrNotLeader))
			bubble.Pass(2 * backoffMax)
			require.Len(t, next.asked(), 1)
		}
		require.Equal(t, 11, futile(r))
		next.asked()[0].done(attrResponse(&wire.Attr{Ino: 7}))
		synctest.Wait()
		require.Empty(t, failed)
		require.Len(t, out, 1)
		require.Zero(t, futile(r))
	})
}

func futile(r *Remote) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.futile
}

// TestRefusedAgain: a session that is refused although it was welcomed is given
// up; what waits beside has its answers a while to come.
func TestRefusedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := newScriptLink(false)
		r, route := scripted(t, RemoteOptions{}, first)
		_, failed := later(func() (gearsfs.Attr, error) { return r.Write(t.Context(), 7, 0, []byte("x")) })
		synctest.Wait()
		_, beside := later(func() ([]gearsfs.Record, error) {
			return r.Take(t.Context(), Take{File: gearsfs.ByIno(8), Keys: []gearsfs.Key{"k"}})
		})
		synctest.Wait()
		links := []*scriptLink{first}
		for range 2 {
			l := newScriptLink(false)
			links = append(links, l)
			route.links <- l
			links[len(links)-2].asked()[0].done(failure(gearsfs.ErrSession))
			synctest.Wait()
			require.Empty(t, l.asked(), "the take beside may be answered yet")
			bubble.Pass(drainPatience + backoffMax)
			require.NotEmpty(t, l.asked())
		}
		require.Len(t, links[2].asked(), 1, "the write; whether the take was made is not known")
		require.ErrorIs(t, <-beside, gearsfs.ErrMaybe)
		require.False(t, links[2].asked()[0].req.GetChange().Retry, "it is a new session")
		links[2].asked()[0].done(attrResponse(&wire.Attr{Ino: 7}))
		synctest.Wait()
		require.Empty(t, failed)
	})
}

// TestOverloadedAgain: that an attempt is refused says nothing of the one before.
func TestOverloadedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newScriptLink(false), newScriptLink(false)
		r, route := scripted(t, RemoteOptions{}, first)
		_, once := later(func() (gearsfs.Attr, error) { return r.Write(t.Context(), 7, 0, []byte("x")) })
		synctest.Wait()
		route.links <- second
		first.lose()
		bubble.Pass(backoffMax)
		second.asked()[0].done(failure(gearsfs.ErrOverload))
		require.ErrorIs(t, <-once, gearsfs.ErrMaybe)
		_, fresh := later(func() (gearsfs.Attr, error) { return r.Write(t.Context(), 7, 0, []byte("x")) })
		synctest.Wait()
		second.asked()[1].done(failure(gearsfs.ErrOverload))
		require.ErrorIs(t, <-fresh, gearsfs.ErrOverload)
	})
}

// TestErrorsOfALink that concern the request are the caller's.
func TestErrorsOfALink(t *testing.T) {
	for _, err := range []error{gearsfs.ErrTooBig, gearsfs.ErrOverload, gearsfs.ErrUnknownOp} {
		resp := received(nil, err)
		require.ErrorIs(t, errorOf(resp), err)
	}
	require.Nil(t, received(nil, gearsfs.ErrClosed), "it was not served: ask again")
	require.ErrorIs(t, errorOf(received([]byte{0xff}, nil)), gearsfs.ErrProtocol)
	require.True(t, lostOrLeaderless(errors.Join(gearsfs.ErrNotLeader)))
}

// TestVouchedQueries: a node that follows vouches for each query as of when it is
// sent, for nothing that changes, and for nothing that another volume is asked.
func TestVouchedQueries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		script, term := newScriptLink(false), uint64(0)
		l := &vouchedLink{script, func() replica.Vouch {
			term++
			return replica.Vouch{Member: 2, Term: term}
		}}
		query := func() *wire.Request {
			return &wire.Request{Kind: &wire.Request_Query{Query: &wire.Query{Op: &wire.Query_GetAttr{GetAttr: 7}}}}
		}
		elsewhere := &sharedLink{parent: l, name: "b", lossy: newLossy()}
		change := &wire.Request{Kind: &wire.Request_Change{Change: new(wire.Change)}}
		for _, req := range []*wire.Request{query(), query(), change} {
			l.start(req, func(*wire.Response) {})
		}
		elsewhere.start(query(), func(*wire.Response) {})
		var got [][2]uint64
		for _, a := range script.asked() {
			got = append(got, [2]uint64{a.req.Voucher, a.req.VouchTerm})
		}
		require.Equal(t, [][2]uint64{{2, 1}, {2, 2}, {}, {}}, got)
	})
}

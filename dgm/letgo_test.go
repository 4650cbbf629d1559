package dgm

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/tests/bubble"
	"github.com/gearsfs/gearsfs/wire"
)

// opening is a link to a node that counts what sessions have open, and answers at
// once unless it is told not to.
type opening struct {
	lossy
	old bool // it does not know Change.open, nor Request.released

	mu     sync.Mutex
	hello  []uint64 // what was open according to the last
	queue  []*wire.Request
	holds  bool // answers nothing
	refuse int  // requests to refuse without having served them
	opens  map[uint64]int
}

func newOpening() *opening { return &opening{lossy: newLossy(), opens: map[uint64]int{}} }

func (l *opening) lends() bool { return false }
func (l *opening) why() error  { return gearsfs.ErrNoNode }

func (l *opening) start(req *wire.Request, done func(*wire.Response)) canceller {
	l.mu.Lock()
	resp := l.serveLocked(req)
	l.mu.Unlock()
	if resp != nil {
		done(resp)
	}
	return nil
}

func (l *opening) serveLocked(req *wire.Request) *wire.Response {
	if h := req.GetHello(); h != nil {
		l.hello = h.Opens
		for i := 0; i < len(h.Opens); i += 2 {
			l.opens[h.Opens[i]] = int(h.Opens[i+1])
		}
		return &wire.Response{Welcome: &wire.Welcome{SessionMinted: 1, SessionSalt: 1, LetsGo: !l.old}}
	}
	if req.GetGoodbye() != nil {
		return &wire.Response{}
	}
	l.queue = append(l.queue, req)
	switch {
	case l.holds:
		return nil
	case l.refuse > 0:
		l.refuse--
		return failure(gearsfs.ErrOverload)
	}
	resp := new(wire.Response)
	if !l.old {
		for _, ino := range req.Released {
			l.opens[ino]--
		}
		resp.LetGo = len(req.Released) > 0
	}
	switch q := req.GetQuery().GetOp().(type) {
	case *wire.Query_Open:
		l.opens[q.Open]++
		resp.Answer = &wire.Answer{Attr: &wire.Attr{Ino: q.Open}}
	case *wire.Query_Release:
		if q.Release != 0 {
			l.opens[q.Release]--
		}
	}
	if c := req.GetChange(); c != nil {
		ino := uint64(100)
		resp.Answer = &wire.Answer{Attr: &wire.Attr{Ino: ino}}
		if resp.Opened = c.Open && !l.old; resp.Opened {
			l.opens[ino]++
		}
	}
	return resp
}

// said is what the link was asked since the last time, and what is open there.
func (l *opening) said() (reqs []*wire.Request, open map[uint64]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	reqs, l.queue = l.queue, nil
	open = map[uint64]int{}
	for ino, n := range l.opens {
		if n != 0 {
			open[ino] = n
		}
	}
	return reqs, open
}

func (l *opening) hold(holds bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holds = holds
}

// openings makes a Remote that goes from one link to the next.
func openings(t *testing.T, links ...*opening) *Remote {
	ways := make(chan link, len(links))
	for _, l := range links {
		ways <- l
	}
	r, err := newRemote(t.Context(), RemoteOptions{}, wayRoute(ways))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	synctest.Wait()
	return r
}

// TestLetGoGoesAlong: what is let go is told with the next request, once, and by
// itself where none comes.
func TestLetGoGoesAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newOpening()
		r := openings(t, l)
		for _, ino := range []gearsfs.Ino{7, 7, 8} {
			_, err := r.Open(t.Context(), ino)
			require.NoError(t, err)
		}
		_, open := l.said()
		require.Equal(t, map[uint64]int{7: 2, 8: 1}, open)
		require.NoError(t, r.LetGo(t.Context(), 7))
		require.NoError(t, r.LetGo(t.Context(), 8))
		reqs, _ := l.said()
		require.Empty(t, reqs, "nobody waits for it")
		_, err := r.Open(t.Context(), 9)
		require.NoError(t, err)
		reqs, open = l.said()
		require.Len(t, reqs, 1)
		require.Equal(t, []uint64{7, 8}, reqs[0].Released)
		require.Equal(t, map[uint64]int{7: 1, 9: 1}, open)
		bubble.Pass(10 * letGoWithin)
		reqs, _ = l.said()
		require.Empty(t, reqs, "all is told")
		require.NoError(t, r.LetGo(t.Context(), 9))
		bubble.Pass(letGoWithin)
		reqs, open = l.said()
		require.Len(t, reqs, 1)
		require.Equal(t, map[uint64]int{7: 1}, open)
	})
}

// TestLetGoMany: it is told by and by, before it is too much.
func TestLetGoMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newOpening()
		r := openings(t, l)
		for range 2*letGoMax + 1 {
			_, err := r.Open(t.Context(), 7)
			require.NoError(t, err)
		}
		l.said()
		for range 2*letGoMax + 1 {
			require.NoError(t, r.LetGo(t.Context(), 7))
		}
		reqs, open := l.said()
		require.Len(t, reqs, 2)
		require.Equal(t, map[uint64]int{7: 1}, open)
		_, err := r.Create(t.Context(), 1, "f", Make{})
		require.NoError(t, err)
		_, open = l.said()
		require.Equal(t, map[uint64]int{100: 1}, open)
	})
}

// TestLetGoOfWhatIsNotServed: a request that was refused has told nothing.
func TestLetGoOfWhatIsNotServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newOpening()
		r := openings(t, l)
		_, err := r.Open(t.Context(), 7)
		require.NoError(t, err)
		l.refuse = 3 // the request, and twice what is told by itself
		require.NoError(t, r.LetGo(t.Context(), 7))
		_, err = r.Open(t.Context(), 8)
		require.ErrorIs(t, err, gearsfs.ErrOverload)
		_, open := l.said()
		require.Equal(t, map[uint64]int{7: 1}, open)
		bubble.Pass(4 * letGoWithin)
		_, open = l.said()
		require.Empty(t, open)
	})
}

// TestLetGoOverLinks: what a lost link has not answered is told by the next hello, in
// which it is not open any more, and by nothing else.
func TestLetGoOverLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newOpening(), newOpening()
		r := openings(t, first, second)
		for _, ino := range []gearsfs.Ino{7, 7, 8, 8} {
			_, err := r.Open(t.Context(), ino)
			require.NoError(t, err)
		}
		first.hold(true)
		require.NoError(t, r.LetGo(t.Context(), 7))
		opened, failed := later(func() (gearsfs.Attr, error) { return r.Open(t.Context(), 9) })
		synctest.Wait()
		reqs, _ := first.said()
		require.Equal(t, []uint64{7}, reqs[len(reqs)-1].Released)
		require.NoError(t, r.LetGo(t.Context(), 8))
		first.lose()
		bubble.Pass(backoffMax)
		require.Empty(t, failed)
		<-opened
		reqs, open := second.said()
		require.Len(t, reqs, 1, "the open")
		require.Empty(t, reqs[0].Released)
		require.Equal(t, map[uint64]int{7: 1, 8: 1, 9: 1}, open)
		bubble.Pass(10 * letGoWithin)
		reqs, _ = second.said()
		require.Empty(t, reqs)
	})
}

// TestLetGoWhileLost: what is let go without a link is told behind the next hello
// where that was said before, and else by it.
func TestLetGoWhileLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, old := range []bool{false, true} {
			first, second := newOpening(), newOpening()
			second.old = old
			greeted, goOn := make(chan struct{}), make(chan struct{})
			ways := make(chan link, 2)
			ways <- first
			r, err := newRemote(t.Context(), RemoteOptions{}, wayRoute(ways))
			require.NoError(t, err)
			synctest.Wait()
			for _, ino := range []gearsfs.Ino{7, 8} {
				_, err := r.Open(t.Context(), ino)
				require.NoError(t, err)
			}
			first.lose()
			synctest.Wait()
			require.NoError(t, r.LetGo(t.Context(), 7))
			ways <- &lateLink{opening: second, greeted: greeted, goOn: goOn}
			<-greeted
			require.NoError(t, r.LetGo(t.Context(), 8)) // the hello says that it is open
			close(goOn)
			bubble.Pass(backoffMax)
			require.Equal(t, []uint64{8, 1}, second.hello)
			_, open := second.said()
			require.Empty(t, open)
			require.NoError(t, r.Close())
			require.ErrorIs(t, r.LetGo(t.Context(), 8), gearsfs.ErrClosed)
		}
	})
}

// TestCreateAtAnOldNode: a node that does not open in the same request is asked to in
// another, and of each end at once.
func TestCreateAtAnOldNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newOpening()
		l.old = true
		r := openings(t, l)
		attr, err := r.Create(t.Context(), 1, "f", Make{})
		require.NoError(t, err)
		reqs, open := l.said()
		require.Len(t, reqs, 2)
		require.True(t, reqs[1].GetQuery().Made)
		require.Equal(t, map[uint64]int{100: 1}, open)
		require.NoError(t, r.LetGo(t.Context(), attr.Ino))
		reqs, open = l.said()
		require.Len(t, reqs, 1)
		require.Empty(t, open)
	})
}

// TestCreateGivenUp: who is not there any more when the answer comes has nothing open.
func TestCreateGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		script := newScriptLink(false)
		r, _ := scripted(t, RemoteOptions{}, script)
		_, failed := later(func() (gearsfs.Attr, error) {
			ctx, stop := context.WithTimeout(t.Context(), time.Second)
			defer stop()
			return r.Create(ctx, 1, "f", Make{})
		})
		bubble.Pass(time.Second + 2*cancelPatience)
		require.ErrorIs(t, <-failed, gearsfs.ErrMaybe)
		script.asked()[0].done(&wire.Response{Answer: &wire.Answer{Attr: &wire.Attr{Ino: 7}}, Opened: true})
		asked := script.asked()
		require.Len(t, asked, 2)
		require.EqualValues(t, 7, asked[1].req.GetQuery().GetRelease())
		require.Empty(t, r.helloAs(r.Session()).GetHello().Opens)
	})
}

// TestCreateSaysItIsOpen in the next hello.
func TestCreateSaysItIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newOpening(), newOpening()
		r := openings(t, first, second)
		_, err := r.Create(t.Context(), 1, "f", Make{})
		require.NoError(t, err)
		first.hold(true)
		_, failed := later(func() (gearsfs.Attr, error) { return r.Create(t.Context(), 1, "g", Make{}) })
		synctest.Wait()
		first.lose()
		bubble.Pass(backoffMax)
		require.Empty(t, failed)
		require.Equal(t, []uint64{100, 1}, slices.Clone(second.hello), "the second was not answered")
		reqs, open := second.said()
		require.Len(t, reqs, 1)
		require.True(t, reqs[0].GetChange().Open)
		require.True(t, reqs[0].GetChange().Retry)
		require.Equal(t, map[uint64]int{100: 2}, open)
	})
}

// wayRoute hands out links that the test makes.
type wayRoute chan link

func (wayRoute) told(*wire.Response) {}

func (w wayRoute) connect(ctx context.Context, how *search) (link, *wire.Response, error) {
	return how.single(ctx, func(ctx context.Context) (link, error) {
		select {
		case l := <-w:
			return l, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
}

// lateLink answers a hello when the test lets it.
type lateLink struct {
	*opening
	greeted, goOn chan struct{}
}

func (l *lateLink) start(req *wire.Request, done func(*wire.Response)) canceller {
	if req.GetHello() == nil {
		return l.opening.start(req, done)
	}
	go func() {
		close(l.greeted)
		<-l.goOn
		l.opening.start(req, done)
	}()
	return nil
}

package dgm_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/persist"
)

// cutter passes bytes between clients and a server and cuts each connection
// after a number of bytes that it draws.
type cutter struct {
	l      net.Listener
	target string
	bytes  func() int64 // until the next cut

	mu   sync.Mutex
	cuts int
	wg   sync.WaitGroup
}

func newCutter(t *testing.T, target string, bytes func() int64) *cutter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &cutter{l: l, target: target, bytes: bytes}
	c.wg.Go(c.run)
	t.Cleanup(func() {
		l.Close()
		c.wg.Wait()
	})
	return c
}

func (c *cutter) run() {
	for {
		near, err := c.l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", c.target)
		if err != nil {
			near.Close()
			continue
		}
		both := func(dst, src net.Conn, n int64) {
			if _, err := io.CopyN(dst, src, n); err == nil {
				c.mu.Lock()
				c.cuts++
				c.mu.Unlock()
			}
			near.Close()
			far.Close()
		}
		c.mu.Lock()
		there, back := c.bytes(), c.bytes()
		c.mu.Unlock()
		c.wg.Go(func() { both(far, near, there) })
		c.wg.Go(func() { both(near, far, back) })
	}
}

func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

func TestCutConnectionsDoNothingTwice(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	vol := openVolume(t, t.TempDir())
	l := listenTCP(t)
	serve(t, vol, l)
	c := newCutter(t, l.Addr().String(), func() int64 { return 500 + rnd.Int64N(6000) })

	const clients, each = 4, 300
	got := make(chan string, clients*each)
	var putting, taking sync.WaitGroup
	for i := range clients {
		p, q := dial(t, c.l.Addr().String(), dgm.RemoteOptions{}), dial(t, c.l.Addr().String(), dgm.RemoteOptions{})
		putting.Go(func() {
			for n := range each {
				_, err := p.Put(t.Context(), dgm.Put{
					File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{Data: fmt.Appendf(nil, "%d %d", i, n)}},
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
		taking.Go(func() {
			for range each {
				rs, err := q.Take(t.Context(), dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"k"}})
				if err != nil {
					t.Error(err)
					return
				}
				got <- string(rs[0].Data)
			}
		})
	}
	putting.Wait()
	taking.Wait()
	close(got)
	seen := make(map[string]bool)
	for text := range got {
		require.False(t, seen[text], "taken twice: %s", text)
		seen[text] = true
	}
	require.Len(t, seen, clients*each)
	c.mu.Lock()
	defer c.mu.Unlock()
	require.Greater(t, c.cuts, 20, "the connections were cut too seldom to tell")
}

func TestRemoteSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(t.TempDir(), "sock")
	start := func() (stop func()) {
		data, err := persist.Open(dir, persist.Options{Create: true, Name: "test"})
		require.NoError(t, err)
		vol, err := dgm.OpenVolume(t.Context(), dgm.VolumeConfig{Data: data, Root: gearsfs.Root})
		require.NoError(t, err)
		l, err := net.Listen("unix", path)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { vol.Serve(ctx, l, nil) })
		return func() {
			cancel()
			wg.Wait()
			require.NoError(t, vol.Close())
		}
	}
	stop := start()
	r := dial(t, "unix:"+path, dgm.RemoteOptions{})
	attr, err := r.Make(t.Context(), gearsfs.RootIno, "f", dgm.Make{Mode: 0o100644})
	require.NoError(t, err)
	_, err = r.Open(t.Context(), attr.Ino)
	require.NoError(t, err)
	taken := make(chan error, 1)
	go func() {
		_, err := r.Take(t.Context(), dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"k"}})
		taken <- err
	}()
	for range 3 {
		stop()
		stop = start()
		_, err := r.Status(t.Context())
		require.NoError(t, err)
	}
	_, err = r.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: benchRecord})
	require.NoError(t, err)
	require.NoError(t, <-taken)
	// The new node knows that the file is open.
	require.NoError(t, r.Unlink(t.Context(), gearsfs.RootIno, "f"))
	_, err = r.GetAttr(t.Context(), attr.Ino)
	require.NoError(t, err)
	require.NoError(t, r.Release(t.Context(), attr.Ino))
	require.NoError(t, r.Close())
	stop()
}

func TestViaReverse(t *testing.T) {
	a, b := openVolume(t, t.TempDir()), openVolume(t, t.TempDir())
	l := listenTCP(t)
	serve(t, b, l)
	offers := dgm.RemoteOptions{Offer: a, OfferName: "a", OfferAs: gearsfs.Root}
	dial(t, l.Addr().String(), offers)
	worker := dial(t, l.Addr().String(), dgm.RemoteOptions{})
	for name, m := range map[string]dgm.Manager{"from b itself": local(t, b), "from a client of b": worker} {
		t.Run(name, func(t *testing.T) {
			via, err := dgm.Via(t.Context(), m, "a")
			require.NoError(t, err)
			defer func() { require.NoError(t, via.Close()) }()
			mine := local(t, a)
			out := make(chan error, 1)
			go func() {
				_, err := mine.Take(t.Context(), dgm.Take{File: gearsfs.At("/acks"), Keys: []gearsfs.Key{"k"}})
				out <- err
			}()
			_, err = via.Put(t.Context(), dgm.Put{File: gearsfs.At("/acks"), Key: "k", Records: benchRecord})
			require.NoError(t, err)
			require.NoError(t, <-out)
		})
	}
	_, err := dgm.Via(t.Context(), worker, "stranger")
	require.ErrorIs(t, err, gearsfs.ErrNoNode)
}

func TestViaNamedRemote(t *testing.T) {
	a, b := openVolume(t, t.TempDir()), openVolume(t, t.TempDir())
	l := listenTCP(t)
	serve(t, b, l)
	m := local(t, a)
	require.NoError(t, m.SetRemote(t.Context(), "b", l.Addr().String()))
	via, err := dgm.Via(t.Context(), m, "b")
	require.NoError(t, err)
	defer func() { require.NoError(t, via.Close()) }()
	st, err := via.Status(t.Context())
	require.NoError(t, err)
	require.NotZero(t, st.Applied)
	_, err = via.Peek(t.Context(), dgm.Peek{File: gearsfs.At("/none"), Key: "k", NoWait: true})
	require.ErrorIs(t, err, gearsfs.ErrEmpty)
}

func TestDialNobody(t *testing.T) {
	l := listenTCP(t)
	addr := l.Addr().String()
	l.Close()
	_, err := dgm.Dial(t.Context(), addr, dgm.RemoteOptions{})
	require.ErrorIs(t, err, gearsfs.ErrNoNode)
}

package dgm_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

var regular = dgm.Make{Mode: unix.S_IFREG | 0o644}

// TestCreateOverCuts: a file whose answer was lost is made once and open once.
func TestCreateOverCuts(t *testing.T) {
	b, r, m := bridged(t)
	for i := range 5 {
		name := fmt.Sprint(i)
		var made gearsfs.Attr
		b.loseAnswer(func() {
			var err error
			if made, err = r.Create(t.Context(), gearsfs.RootIno, name, regular); err != nil {
				t.Error(err)
			}
		})
		require.NoError(t, m.Unlink(t.Context(), gearsfs.RootIno, name))
		_, err := m.GetAttr(t.Context(), made.Ino)
		require.NoError(t, err, "it is open")
		require.NoError(t, r.LetGo(t.Context(), made.Ino))
		_, err = r.Lookup(t.Context(), gearsfs.RootIno, name) // tells of it
		require.ErrorIs(t, err, gearsfs.ErrNotFound)
		requireLetGo(t, m, made.Ino)
	}
}

// TestLetGoOverCuts: where the request that was to tell of it was lost, the hello does,
// and another open stays.
func TestLetGoOverCuts(t *testing.T) {
	b, r, m := bridged(t)
	for i := range 5 {
		name := fmt.Sprint(i)
		made, err := r.Create(t.Context(), gearsfs.RootIno, name, regular)
		require.NoError(t, err)
		_, err = r.Open(t.Context(), made.Ino)
		require.NoError(t, err)
		for _, left := range []bool{true, false} {
			require.NoError(t, r.LetGo(t.Context(), made.Ino))
			b.loseAnswer(func() {
				if _, err := r.Lookup(t.Context(), gearsfs.RootIno, name); (err == nil) != left {
					t.Error(err)
				}
			})
			if !left {
				break
			}
			require.NoError(t, m.Unlink(t.Context(), gearsfs.RootIno, name))
			_, err = m.GetAttr(t.Context(), made.Ino)
			require.NoError(t, err, "it is open once more")
		}
		requireLetGo(t, m, made.Ino)
	}
}

// TestCreateOnNodes: what was created stays open over a change of leader, whichever
// node its client came by, until it is let go or the session ends.
func TestCreateOnNodes(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		if way.name == "close" { // what is local to a process ends with it
			continue
		}
		t.Run(way.name, func(t *testing.T) {
			c := newNodes(t, "a", "b", "c")
			leads, follows := c.leader(), c.follower()
			other := local(t, follows.vol)
			dies, err := follows.vol.Local(client)
			require.NoError(t, err)
			clients := map[string]dgm.Manager{
				"leader": local(t, leads.vol), "follower": local(t, follows.vol), "dies": dies,
				"remote": dial(t, c.addrs(), dgm.RemoteOptions{}),
			}
			before, after := map[string]gearsfs.Ino{}, map[string]gearsfs.Ino{}
			for name, m := range clients {
				for suffix, inos := range map[string]map[string]gearsfs.Ino{"before": before, "after": after} {
					made, err := m.Create(t.Context(), gearsfs.RootIno, name+suffix, regular)
					require.NoError(t, err)
					inos[name] = made.Ino
				}
				require.NoError(t, other.Unlink(t.Context(), gearsfs.RootIno, name+"before"))
				for range 2 { // as often as it was opened since
					_, err = m.Open(t.Context(), after[name])
					require.NoError(t, err)
					require.NoError(t, m.LetGo(t.Context(), after[name]))
				}
			}
			way.fail(c)
			for name, m := range clients {
				require.NoError(t, other.Unlink(t.Context(), gearsfs.RootIno, name+"after"))
				for _, ino := range []gearsfs.Ino{before[name], after[name]} {
					attr, err := m.Open(t.Context(), ino)
					require.NoError(t, err, name)
					require.Zero(t, attr.Nlink)
					require.NoError(t, m.LetGo(t.Context(), ino))
					_, err = m.Write(t.Context(), ino, 0, []byte("x"))
					require.NoError(t, err, name)
				}
			}
			require.NoError(t, dies.Close())
			for name, m := range clients {
				for _, ino := range []gearsfs.Ino{before[name], after[name]} {
					if name != "dies" {
						require.NoError(t, m.LetGo(t.Context(), ino))
					}
					goes(t, other, ino)
				}
			}
		})
	}
}

// TestCreateBesideUnlink: whoever removes a file while another creates it, it is either
// open or gone.
func TestCreateBesideUnlink(t *testing.T) {
	t.Parallel()
	c := newNodes(t, "a", "b", "c")
	makes, removes := local(t, c.follower().vol), local(t, c.leader().vol)
	for i := range 200 {
		name := fmt.Sprint(i)
		var removing sync.WaitGroup
		removing.Go(func() {
			for t.Context().Err() == nil {
				if err := removes.Unlink(t.Context(), gearsfs.RootIno, name); !errors.Is(err, gearsfs.ErrNotFound) {
					if err != nil {
						t.Error(err)
					}
					return
				}
			}
		})
		made, err := makes.Create(t.Context(), gearsfs.RootIno, name, regular)
		removing.Wait()
		if err != nil {
			require.ErrorIs(t, err, gearsfs.ErrStale)
			goes(t, removes, made.Ino)
			continue
		}
		_, err = makes.Write(t.Context(), made.Ino, 0, []byte("x"))
		require.NoError(t, err)
		require.NoError(t, makes.LetGo(t.Context(), made.Ino))
		goes(t, removes, made.Ino)
	}
}

// TestCreateAnsweredLate: a client that says hello again while its file is being made
// asks again, and has it open once.
func TestCreateAnsweredLate(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	l := listenTCP(t)
	serve(t, vol, l)
	b := bridgeOn(t, listenTCP(t), l.Addr().String())
	r, m := dial(t, b.addr(), dgm.RemoteOptions{}), local(t, vol)
	ten := vol.Tenure()
	held := func(n int) {
		require.Eventually(t, func() bool {
			now, _ := ten.Busy()
			return now == n
		}, 20*time.Second, time.Millisecond)
	}
	dir, err := m.Make(t.Context(), gearsfs.RootIno, "d", dgm.Make{Mode: unix.S_IFDIR | 0o777})
	require.NoError(t, err)
	ten.HoldBack()
	letThrough := sync.OnceFunc(ten.LetAllThrough)
	defer letThrough()
	var made gearsfs.Attr
	out := make(chan error, 1)
	go func() {
		var err error
		made, err = r.Create(t.Context(), dir.Ino, "f", regular)
		out <- err
	}()
	held(1)
	b.halfCut()
	held(2)
	letThrough()
	require.NoError(t, <-out)
	require.NoError(t, m.Unlink(t.Context(), dir.Ino, "f"))
	_, err = m.GetAttr(t.Context(), made.Ino)
	require.NoError(t, err, "it is open")
	require.NoError(t, r.LetGo(t.Context(), made.Ino))
	goes(t, m, made.Ino)
}

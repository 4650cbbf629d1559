package tests

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// kill -9 of the daemon at any moment: what was acknowledged stays so. The
// clients notice nothing but the time that it takes.
func TestKillLoop(t *testing.T) {
	t.Parallel()
	const putters, takers = 6, 4
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	kills := size(200, 2000)

	d := startDaemon(t)
	l := newLedger("/q", putters)
	l.someLarge = true
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var putting, taking sync.WaitGroup
	stop := make(chan struct{})
	for i := range putters {
		m, rng := d.dial(), rand.New(rand.NewPCG(seed, uint64(i)))
		putting.Go(func() {
			for open(stop) {
				if err := l.putSome(ctx, m, uint32(i), 1+rng.IntN(8)); err != nil {
					cancel(fmt.Errorf("putter %d: %w", i, err))
					return
				}
			}
		})
	}
	for i := range takers {
		m, rng := d.dial(), rand.New(rand.NewPCG(seed, uint64(100+i)))
		taking.Go(func() {
			t := taker{ledger: l}
			for {
				err := t.takeSome(ctx, m, 1+rng.IntN(8))
				if errors.Is(err, gearsfs.ErrEnd) {
					return
				}
				if err != nil {
					cancel(fmt.Errorf("taker %d: %w", i, err))
					return
				}
			}
		})
	}
	gardener := &gardener{m: d.dial(), rng: rand.New(rand.NewPCG(seed, 1000)), want: map[string]gearsfs.Ino{}}
	putting.Go(func() {
		for open(stop) {
			if err := gardener.step(ctx); err != nil {
				cancel(fmt.Errorf("the tree: %w", err))
				return
			}
		}
	})

	rng := rand.New(rand.NewPCG(seed, 2000))
	for kill := range kills {
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(20+rng.IntN(300)) * time.Millisecond): // when to strike
		}
		if ctx.Err() != nil {
			break
		}
		d.kill()
		if err := d.tryStart(); err != nil {
			cancel(fmt.Errorf("start after kill %d: %w", kill+1, err))
			break
		}
	}
	close(stop)
	putting.Wait()
	require.NoError(t, context.Cause(ctx))
	require.NoError(t, l.seal(ctx, d.dial()))
	taking.Wait()
	require.NoError(t, context.Cause(ctx))
	require.NoError(t, l.check())
	t.Logf("%d kills, %d records, %d changes of the tree", kills, len(l.taken), gardener.steps)
	require.Greater(t, len(l.taken), kills, "there was load")
}

func open(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return false
	default:
		return true
	}
}

// A gardener makes, renames and removes files of one directory, and looks after
// each change whether the directory is as it should be. Nobody else changes it.
type gardener struct {
	m     dgm.Manager
	rng   *rand.Rand
	dir   gearsfs.Ino
	want  map[string]gearsfs.Ino
	steps int
}

func (g *gardener) step(ctx context.Context) error {
	if g.dir == 0 {
		attr, err := g.m.Make(ctx, gearsfs.RootIno, "garden", dgm.Make{Mode: 0o040755})
		if err != nil {
			return err
		}
		g.dir = attr.Ino
	}
	name := func() string { return fmt.Sprintf("plant %02d", g.rng.IntN(40)) }
	a, b := name(), name()
	switch _, there := g.want[a]; {
	case !there:
		attr, err := g.m.Make(ctx, g.dir, a, dgm.Make{Mode: 0o100644})
		if err != nil {
			return fmt.Errorf("make %s: %w", a, err)
		}
		g.want[a] = attr.Ino
	case g.rng.IntN(2) == 0:
		if err := g.m.Unlink(ctx, g.dir, a); err != nil {
			return fmt.Errorf("unlink %s: %w", a, err)
		}
		delete(g.want, a)
	case a != b:
		if err := g.m.Rename(ctx, dgm.Rename{Dir: g.dir, Name: a, NewDir: g.dir, NewName: b}); err != nil {
			return fmt.Errorf("rename %s to %s: %w", a, b, err)
		}
		g.want[b] = g.want[a]
		delete(g.want, a)
	}
	g.steps++
	entries, err := g.m.ReadDir(ctx, g.dir, "", 100)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if g.want[e.Name] != e.Attr.Ino {
			return fmt.Errorf("step %d: %s is inode %d, not %d", g.steps, e.Name, e.Attr.Ino, g.want[e.Name])
		}
	}
	if len(entries) != len(g.want) {
		return fmt.Errorf("step %d: %d entries, not %d", g.steps, len(entries), len(g.want))
	}
	return nil
}

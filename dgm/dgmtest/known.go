package dgmtest

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// named is a put of records whose ids are their texts.
func named(key gearsfs.Key, ids ...string) dgm.Put {
	p := dgm.Put{File: queue, Key: key}
	for _, id := range ids {
		p.Records = append(p.Records, gearsfs.NewRecord{Data: []byte(id), ID: id})
	}
	return p
}

// namedLater starts a put and returns when it waits.
func (s *suite) namedLater(ctx context.Context, m dgm.Manager, p dgm.Put) <-chan error {
	s.t.Helper()
	before := s.waiting()
	out := make(chan error, 1)
	go func() {
		_, err := m.Put(ctx, p)
		out <- err
	}()
	s.untilWaiting(before + 1)
	return out
}

func (s *suite) ended(out <-chan error) error {
	s.t.Helper()
	select {
	case err := <-out:
		return err
	case <-s.ctx.Done():
		require.Fail(s.t, "it still waits")
		return nil
	}
}

// knownNeedNoRoom: a put whose ids are all known is answered at once, also where
// the stream is full and others wait for room before it.
func knownNeedNoRoom(t *testing.T, s *suite) {
	first, err := s.m.Put(s.ctx, named("k", "a", "b"))
	require.NoError(t, err)
	s.limit("k", gearsfs.Limits{Records: 2})
	waiting := s.namedLater(s.ctx, s.open(t), named("k", "c"))
	own := s.open(t)
	ownWaiting := s.namedLater(s.ctx, own, named("k", "d"))
	for _, m := range []dgm.Manager{s.m, own} {
		for _, noWait := range []bool{true, false} {
			again := named("k", "a")
			again.NoWait = noWait
			got, err := m.Put(s.ctx, again)
			require.NoError(t, err)
			require.Equal(t, first.First, got.First)
			_, err = m.Put(s.ctx, named("k", "b", "a"))
			require.NoError(t, err)
		}
	}
	partly := named("k", "a", "new")
	partly.NoWait = true
	_, err = s.m.Put(s.ctx, partly)
	require.ErrorIs(t, err, gearsfs.ErrFull)
	if !s.info("k").Settings.Memory {
		results, err := s.m.Transact(s.ctx, dgm.Transact{Steps: []dgm.Step{{Put: new(named("k", "b"))}}})
		require.NoError(t, err)
		require.Equal(t, first.Last, results[0].Put.Last)
	}
	require.Equal(t, 2, s.waiting())
	require.Equal(t, []string{"a", "b"}, s.take(s.m, 2, "k"))
	require.NoError(t, s.ended(waiting))
	require.NoError(t, s.ended(ownWaiting))
	require.Equal(t, []string{"c", "d"}, s.take(s.m, 5, "k"))
}

// becomesKnown: the ids of a put that waits for room come with others' puts, and
// then it waits no longer. One that also seals does so behind its session's
// earlier ones.
func becomesKnown(t *testing.T, s *suite) {
	s.put(s.m, "k", "1", "2")
	s.limit("k", gearsfs.Limits{Records: 2})
	own := s.open(t)
	// Three more of the same, and others around them, wait in front of room for one.
	x := s.namedLater(s.ctx, s.open(t), named("k", "x"))
	blocked := s.namedLater(s.ctx, s.open(t), named("k", "other"))
	both := s.namedLater(s.ctx, s.open(t), named("k", "y", "x"))
	again := s.namedLater(s.ctx, s.open(t), named("k", "x"))
	mine := s.namedLater(s.ctx, own, named("k", "mine"))
	last := named("k", "x")
	last.Seal = true
	sealing := s.namedLater(s.ctx, own, last)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	given := s.namedLater(ctx, s.open(t), named("k", "x", "never"))
	require.Equal(t, []string{"1"}, s.take(s.m, 1, "k"))
	require.NoError(t, s.ended(x))
	require.NoError(t, s.ended(again))
	s.untilWaiting(5)
	if s.info("k").Settings.Memory {
		return
	}
	_, err := s.m.Transact(s.ctx, dgm.Transact{Steps: []dgm.Step{
		{Take: &dgm.Take{File: queue, Keys: []gearsfs.Key{"k"}}}, {Put: new(named("k", "y"))},
	}})
	require.NoError(t, err)
	require.NoError(t, s.ended(both))
	s.untilWaiting(4)
	cancel()
	require.ErrorIs(t, s.ended(given), context.Canceled)
	require.Equal(t, []string{"x"}, s.take(s.m, 1, "k"))
	require.NoError(t, s.ended(blocked))
	s.untilWaiting(2)
	require.Equal(t, []string{"y"}, s.take(s.m, 1, "k"))
	require.NoError(t, s.ended(mine))
	require.NoError(t, s.ended(sealing))
	require.Equal(t, []string{"other", "mine"}, s.take(s.m, 2, "k"))
	_, err = s.m.Take(s.ctx, dgm.Take{File: queue, Keys: []gearsfs.Key{"k"}})
	require.ErrorIs(t, err, gearsfs.ErrEnd)
}

// sealsBehindTheCancelled: a put that knows its id and seals needs no room once
// the earlier one of its session is given up.
func sealsBehindTheCancelled(t *testing.T, s *suite) {
	_, err := s.m.Put(s.ctx, named("k", "a"))
	require.NoError(t, err)
	s.limit("k", gearsfs.Limits{Records: 1})
	ctx, cancel := context.WithCancel(s.ctx)
	earlier := s.namedLater(ctx, s.m, named("k", "b"))
	last := named("k", "a")
	last.Seal = true
	sealing := s.namedLater(s.ctx, s.m, last)
	cancel()
	require.ErrorIs(t, s.ended(earlier), context.Canceled)
	require.NoError(t, s.ended(sealing))
}

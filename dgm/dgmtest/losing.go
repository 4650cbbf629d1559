package dgmtest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// transactLosesItsLease: a transaction that waits learns when a lease ends that
// it is to settle, however that comes, and not when another one does.
func transactLosesItsLease(t *testing.T, s *suite) {
	s.put(s.m, "full", "x")
	s.limit("full", gearsfs.Limits{Records: 1})
	settle := func(rs []gearsfs.Record) dgm.Step { return dgm.Step{Settle: &dgm.Settle{Receipts: receipts(rs)}} }
	zero := uint32(0)
	for _, way := range []struct {
		name string
		end  func(rs []gearsfs.Record)
	}{
		{"acknowledged", func(rs []gearsfs.Record) { require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs)})) }},
		{"returned", func(rs []gearsfs.Record) {
			require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs), Return: true}))
		}},
		{"returned for later", func(rs []gearsfs.Record) {
			require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs), Return: true, Delay: time.Hour}))
		}},
		{"dead", func(rs []gearsfs.Record) {
			require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs), Return: true, Tries: 1}))
		}},
		{"over", func(rs []gearsfs.Record) {
			require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs), Extend: time.Millisecond}))
		}},
		{"cleared", func([]gearsfs.Record) {
			require.NoError(t, s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{Clear: true}))
		}},
		{"dropped", func([]gearsfs.Record) {
			require.NoError(t, s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{Drop: true}))
		}},
		{"replaced", func([]gearsfs.Record) {
			_, err := s.m.Update(s.ctx, dgm.Update{File: queue, Key: "k"})
			require.NoError(t, err)
		}},
		{"discarded", func([]gearsfs.Record) {
			drop := gearsfs.FullDropOldest
			require.NoError(t, s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{
				Limits: &gearsfs.Limits{Records: 1}, Set: dgm.SettingsChange{Full: &drop, Tries: &zero},
			}))
			s.put(s.m, "k", "next")
		}},
	} {
		require.NoError(t, s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{Drop: true}), way.name)
		s.put(s.m, "k", "1")
		s.put(s.m, "other", "1", "2")
		take := dgm.Take{File: queue, Keys: []gearsfs.Key{"k"}, Lease: true, LeaseFor: time.Hour, ByReceipt: true}
		held, err := s.m.Take(s.ctx, take)
		require.NoError(t, err)
		others := s.lease(s.m, 2, "other")
		waiting := s.transactLater(s.ctx, s.m, tx(settle(held), settle(others[:1]), putStep("full", "y")))
		require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(others[1:])}))
		require.Equal(t, 1, s.waiting(), "another lease")
		way.end(held)
		select {
		case got := <-waiting:
			require.ErrorIs(t, got.err, gearsfs.ErrGone, way.name)
		case <-s.ctx.Done():
			require.Fail(t, "it still waits", way.name)
		}
		require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(others[:1])}), "nothing of it was done")
	}
	s.take(s.m, 1, "full")
	s.put(s.m, "k", "last")
	held := s.lease(s.m, 2, "k")
	s.put(s.m, "full", "x")
	waiting := s.transactLater(s.ctx, s.m, tx(settle(held), putStep("full", "y")))
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(held), Extend: time.Hour}))
	require.Equal(t, 1, s.waiting(), "it is held on")
	s.take(s.m, 1, "full")
	s.transacted(waiting)
}

package dgmtest

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// alike runs a test on streams that are in memory.
func alike(run func(t *testing.T, s *suite), keys ...gearsfs.Key) func(t *testing.T, s *suite) {
	return func(t *testing.T, s *suite) {
		s.put(s.m, "elsewhere", "x") // makes the file
		for _, key := range keys {
			if !s.intoMemory(key) {
				t.Skip("replicated streams are on disk")
			}
		}
		run(t, s)
		for _, key := range keys {
			require.True(t, s.info(key).Settings.Memory)
		}
	}
}

// intoMemory brings a stream into memory; it reports false where the volume has
// several nodes.
func (s *suite) intoMemory(key gearsfs.Key) bool {
	s.t.Helper()
	yes := true
	err := s.m.Configure(s.ctx, queue, key, dgm.StreamChange{Set: dgm.SettingsChange{Memory: &yes}})
	if members, nodesErr := s.m.Nodes(s.ctx); nodesErr == nil && len(members) > 1 {
		require.ErrorIs(s.t, err, gearsfs.ErrUnsupported)
		return false
	}
	require.NoError(s.t, err)
	return true
}

// memoryAndDisk: a take of several keys may name streams of both kinds, and
// receipts of both kinds are settled at once.
func memoryAndDisk(t *testing.T, s *suite) {
	s.put(s.m, "disk", "d1", "d2", "d3")
	for _, key := range []gearsfs.Key{"mem", "mem2"} {
		if !s.intoMemory(key) {
			t.Skip("replicated streams are on disk")
		}
	}
	both := []gearsfs.Key{"mem", "disk", "mem2"}
	s.put(s.m, "mem2", "n1", "n2")
	require.Equal(t, []string{"d1"}, s.take(s.m, 1, both...), "the first that has one")
	s.put(s.m, "mem", "m1", "m2")
	require.Equal(t, []string{"m1"}, s.take(s.m, 1, both...))
	lease := dgm.Take{File: queue, Keys: both, Max: 9, Lease: true, NoWait: true}
	var held []gearsfs.Record
	for _, want := range [][]string{{"m2"}, {"d2", "d3"}, {"n1", "n2"}} {
		rs, err := s.m.Take(s.ctx, lease)
		require.NoError(t, err)
		require.Equal(t, want, texts(rs))
		held = append(held, rs...)
	}
	_, err := s.m.Take(s.ctx, lease)
	require.ErrorIs(t, err, gearsfs.ErrEmpty)

	// m2 d2 d3 n1 n2
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(held), Extend: time.Minute}))
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(held[:2])}), "m2 and d2")
	for _, rs := range [][]gearsfs.Record{{held[0], held[2]}, {held[1], held[3]}, {held[2], held[3], held[3]}, {held[2], held[2], held[3]}} {
		require.ErrorIs(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs)}), gearsfs.ErrGone)
	}
	require.EqualValues(t, 2, s.info("mem2").Leased, "all or none")
	require.EqualValues(t, 1, s.info("disk").Leased)
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(held[2:]), Return: true}), "d3, n1 and n2")
	require.Equal(t, []string{"d3"}, s.take(s.m, 9, both...))
	require.Equal(t, []string{"n1", "n2"}, s.take(s.m, 9, both...))

	// Who waits at both is woken by either, in turn with others.
	for _, key := range []gearsfs.Key{"mem", "disk", "mem2"} {
		first := s.takeLater(s.ctx, s.open(t), takeOf(both...))
		second := s.takeLater(s.ctx, s.open(t), takeOf(key))
		s.put(s.m, key, "1")
		require.Equal(t, []string{"1"}, texts(s.receive(first)))
		s.put(s.m, key, "2")
		require.Equal(t, []string{"2"}, texts(s.receive(second)))
	}
	out := s.takeLater(s.ctx, s.open(t), takeOf(both...))
	yes := true
	for _, key := range both {
		require.NoError(t, s.m.Configure(s.ctx, queue, key, dgm.StreamChange{Seal: &yes}))
	}
	require.ErrorIs(t, s.outcome(out).err, gearsfs.ErrEnd)
	_, err = s.m.Take(s.ctx, lease)
	require.ErrorIs(t, err, gearsfs.ErrEnd)
}

// movesIntoMemory: who waits at several keys goes on waiting as they come into
// memory and leave it.
func movesIntoMemory(t *testing.T, s *suite) {
	s.put(s.m, "other", "x")
	out := s.takeLater(s.ctx, s.open(t), takeOf("a", "b"))
	if !s.intoMemory("b") {
		t.Skip("replicated streams are on disk")
	}
	s.put(s.m, "b", "1")
	require.Equal(t, []string{"1"}, texts(s.receive(out)))
	out = s.takeLater(s.ctx, s.open(t), takeOf("a", "b"))
	no := false
	require.NoError(t, s.m.Configure(s.ctx, queue, "b", dgm.StreamChange{Set: dgm.SettingsChange{Memory: &no}}))
	require.True(t, s.intoMemory("a"))
	s.put(s.m, "b", "2")
	require.Equal(t, []string{"2"}, texts(s.receive(out)))
}

// memoryNearMisses: waits says of those, too, who waits for what, and what may be
// misspelled.
func memoryNearMisses(t *testing.T, s *suite) {
	s.put(s.m, "other", "x")
	if !s.intoMemory("counts") || !s.intoMemory("words") {
		t.Skip("replicated streams are on disk")
	}
	s.takeLater(s.ctx, s.open(t), takeOf("counts", "words"))
	s.put(s.m, "coutns", "1")
	ws, err := s.m.Waits(s.ctx)
	require.NoError(t, err)
	require.Len(t, ws, 1)
	require.Equal(t, []gearsfs.Key{"counts", "words"}, ws[0].Keys)
	require.Equal(t, []gearsfs.Key{"coutns"}, ws[0].Near)
	require.EqualValues(t, 1, s.info("words").Waiting)
	near, err := s.m.Near(s.ctx, queue, []gearsfs.Key{"wrods"})
	require.NoError(t, err)
	require.Equal(t, []gearsfs.Key{"words"}, near)
}

// memoryIsBounded: what was taken is not kept.
func memoryIsBounded(t *testing.T, s *suite) {
	s.put(s.m, "other", "x")
	if !s.intoMemory("k") {
		t.Skip("replicated streams are on disk")
	}
	record := strings.Repeat("x", 64<<10)
	before := heap()
	for range 100 {
		for range 20 {
			s.put(s.m, "k", record)
		}
		require.Len(t, s.take(s.m, 10, "k"), 10)
		require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(s.lease(s.m, 10, "k"))}))
	}
	require.Less(t, heap()-before, int64(80<<20), "of 125 MiB that went through")
}

// heap is how many bytes are in use.
func heap() int64 {
	runtime.GC()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	return int64(ms.HeapInuse)
}

// memoryBesideTheDead: where the stream of the dead is on disk and has records, one
// in memory has nowhere to go, and comes back; where it is missing it is made.
func memoryBesideTheDead(t *testing.T, s *suite) {
	s.put(s.m, "k.dead", "on disk")
	if !s.intoMemory("k") || !s.intoMemory("l") {
		t.Skip("replicated streams are on disk")
	}
	for _, key := range []gearsfs.Key{"k", "l"} {
		s.put(s.m, key, "x")
		rs := s.lease(s.m, 1, key)
		require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs), Return: true, Tries: 1}))
	}
	require.Equal(t, []string{"x"}, s.take(s.m, 1, "k"))
	require.Equal(t, []string{"on disk"}, s.take(s.m, 9, "k.dead"))
	require.Equal(t, []string{"x"}, s.take(s.m, 1, "l.dead"))
	s.empty(s.m, "l")
	require.True(t, s.info("l.dead").Settings.Memory)
	require.False(t, s.info("k.dead").Settings.Memory)
}

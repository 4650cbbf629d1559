package dgmtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

func putTakeOrder(t *testing.T, s *suite) {
	first := s.put(s.m, "k", "a")
	second := s.put(s.m, "k", "b", "c")
	require.Equal(t, gearsfs.Seq(1), first.First)
	require.Equal(t, first.Last+1, second.First)
	require.Equal(t, second.First+1, second.Last)
	rs, err := s.m.Take(s.ctx, dgm.Take{File: queue, Keys: []gearsfs.Key{"k"}, Max: 2})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, texts(rs))
	require.Equal(t, gearsfs.Place{Pos: 0, Seq: 1}, rs[0].Place)
	require.Equal(t, gearsfs.Place{Pos: 1, Seq: 2}, rs[1].Place)
	require.Equal(t, gearsfs.Key("k"), rs[0].Key)
	require.Equal(t, uint32(1), rs[0].Deliveries)
	require.Nil(t, rs[0].Receipt)
	require.False(t, rs[0].Time.IsZero())
	require.Equal(t, []string{"c"}, s.take(s.m, 5, "k"))
	s.empty(s.m, "k")
}

func batches(t *testing.T, s *suite) {
	var in []string
	for i := range 3000 {
		in = append(in, fmt.Sprint("record ", i))
	}
	for i := 0; i < len(in); i += 500 {
		s.put(s.m, "k", in[i:i+500]...)
	}
	var out []string
	for len(out) < len(in) {
		out = append(out, s.take(s.m, 700, "k")...)
	}
	require.Equal(t, in, out)

	big := strings.Repeat("x", gearsfs.RecordBytesMax)
	s.put(s.m, "big", big)
	s.put(s.m, "big", "small")
	got := s.take(s.m, 10, "big") // as many as fit a batch, at least one
	require.Len(t, got, 1)
	require.True(t, big == got[0])
	require.Equal(t, []string{"small"}, s.take(s.m, 10, "big"))
}

func emptyRecord(t *testing.T, s *suite) {
	s.put(s.m, "k", "", "a", "")
	info, err := s.m.Stream(s.ctx, queue, "k")
	require.NoError(t, err)
	require.Equal(t, uint64(3), info.Records)
	require.Equal(t, uint64(1), info.Bytes)
	require.Equal(t, []string{"", "a", ""}, s.take(s.m, 5, "k"))
	s.empty(s.m, "k")
}

func takeOf(keys ...gearsfs.Key) dgm.Take { return dgm.Take{File: queue, Keys: keys} }

func takeWaitsForPut(t *testing.T, s *suite) {
	s.put(s.m, "k", "first")
	s.take(s.m, 1, "k")
	out := s.takeLater(s.ctx, s.open(t), takeOf("k"))
	s.put(s.m, "k", "second")
	require.Equal(t, []string{"second"}, texts(s.receive(out)))
	require.Zero(t, s.waiting())
}

func takeWaitsForMissingFile(t *testing.T, s *suite) {
	out := s.takeLater(s.ctx, s.open(t), takeOf("k"))
	other := s.takeLater(s.ctx, s.open(t), takeOf("other"))
	s.put(s.m, "k", "made")
	require.Equal(t, []string{"made"}, texts(s.receive(out)))
	s.put(s.m, "other", "too")
	require.Equal(t, []string{"too"}, texts(s.receive(other)))

	_, err := s.m.Take(s.ctx, dgm.Take{File: gearsfs.At("/no/such/dir"), Keys: []gearsfs.Key{"k"}})
	require.ErrorIs(t, err, gearsfs.ErrNotFound)
}

func takeWaitsForMissingKey(t *testing.T, s *suite) {
	s.put(s.m, "there", "x")
	out := s.takeLater(s.ctx, s.open(t), takeOf("missing"))
	s.put(s.m, "missing", "now")
	require.Equal(t, []string{"now"}, texts(s.receive(out)))
}

func firstCome(t *testing.T, s *suite) {
	s.put(s.m, "k", "x")
	s.take(s.m, 1, "k")
	var outs []<-chan outcome
	m := s.open(t)
	for range 10 {
		outs = append(outs, s.takeLater(s.ctx, m, takeOf("k")))
	}
	for i, out := range outs {
		if i%2 == 0 {
			s.put(s.m, "k", fmt.Sprint(i), fmt.Sprint(i+1))
		}
		require.Equal(t, []string{fmt.Sprint(i)}, texts(s.receive(out)))
	}
}

func cancelledTake(t *testing.T, s *suite) {
	ctx, cancel := context.WithCancel(s.ctx)
	out := s.takeLater(ctx, s.open(t), takeOf("k"))
	cancel()
	require.ErrorIs(t, s.outcome(out).err, context.Canceled)
	s.untilWaiting(0)
	s.put(s.m, "k", "kept")
	require.Equal(t, []string{"kept"}, s.take(s.m, 1, "k"))

	// Cancelling while puts come: what a take does not return stays.
	m := s.open(t)
	taken := map[string]bool{}
	for i := range 200 {
		ctx, cancel := context.WithCancel(s.ctx)
		out := make(chan outcome, 1)
		go func() {
			rs, err := m.Take(ctx, takeOf("race"))
			out <- outcome{rs, err}
		}()
		go cancel()
		s.put(s.m, "race", fmt.Sprint(i))
		for _, text := range texts(s.outcome(out).records) {
			require.False(t, taken[text], "taken twice: %s", text)
			taken[text] = true
		}
	}
	for len(taken) < 200 {
		for _, text := range s.take(m, 200, "race") {
			require.False(t, taken[text], "taken twice: %s", text)
			taken[text] = true
		}
	}
}

func severalKeys(t *testing.T, s *suite) {
	s.put(s.m, "low", "l1", "l2")
	s.put(s.m, "high", "h1")
	require.Equal(t, []string{"h1"}, s.take(s.m, 5, "high", "low"))
	require.Equal(t, []string{"l1", "l2"}, s.take(s.m, 5, "high", "low"))
	out := s.takeLater(s.ctx, s.open(t), takeOf("high", "low"))
	s.put(s.m, "low", "l3")
	rs := s.receive(out)
	require.Equal(t, []string{"l3"}, texts(rs))
	require.Equal(t, gearsfs.Key("low"), rs[0].Key)
}

func noWait(t *testing.T, s *suite) {
	s.empty(s.m, "k") // neither file nor key
	s.put(s.m, "k", "x")
	s.empty(s.m, "other")
	require.Equal(t, []string{"x"}, s.take(s.m, 1, "k"))
	s.empty(s.m, "k")
	_, err := s.m.Peek(s.ctx, dgm.Peek{File: queue, Key: "k", NoWait: true})
	require.ErrorIs(t, err, gearsfs.ErrEmpty)
}

func leaseAcknowledged(t *testing.T, s *suite) {
	s.put(s.m, "k", "a", "b", "c")
	rs := s.lease(s.m, 2, "k")
	require.Equal(t, []string{"a", "b"}, texts(rs))
	require.NotNil(t, rs[0].Receipt)
	info, err := s.m.Stream(s.ctx, queue, "k")
	require.NoError(t, err)
	require.Equal(t, uint64(1), info.Records)
	require.Equal(t, uint64(2), info.Leased)
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs)}))
	require.ErrorIs(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs)}), gearsfs.ErrGone)
	require.Equal(t, []string{"c"}, s.take(s.m, 5, "k"))
	s.empty(s.m, "k")
}

func leaseReturned(t *testing.T, s *suite) {
	s.put(s.m, "k", "a", "b", "c", "d")
	rs := s.lease(s.m, 3, "k")
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs[1:2])}))
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs[2:]), Return: true}))
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs[:1]), Return: true}))
	again := s.lease(s.m, 10, "k")
	require.Equal(t, []string{"a", "c", "d"}, texts(again))
	require.Equal(t, uint32(2), again[0].Deliveries)
	require.Equal(t, uint32(1), again[2].Deliveries)
	require.NotEqual(t, rs[0].Receipt.Fence, again[0].Receipt.Fence)
	require.ErrorIs(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs[:1])}), gearsfs.ErrGone)
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(again)}))

	// A returned record wakes who waits.
	s.put(s.m, "k", "e")
	rs = s.lease(s.m, 1, "k")
	out := s.takeLater(s.ctx, s.open(t), takeOf("k"))
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs), Return: true}))
	require.Equal(t, []string{"e"}, texts(s.receive(out)))
}

func leaseEndsWithSession(t *testing.T, s *suite) {
	s.put(s.m, "k", "a", "b")
	other := s.open(t)
	require.Len(t, s.lease(other, 2, "k"), 2)
	s.empty(s.m, "k")
	out := s.takeLater(s.ctx, s.m, dgm.Take{File: queue, Keys: []gearsfs.Key{"k"}, Max: 2})
	require.NoError(t, other.Close())
	got := texts(s.receive(out))
	for len(got) < 2 {
		got = append(got, s.take(s.m, 2, "k")...)
	}
	require.Equal(t, []string{"a", "b"}, got)
}

func leaseOfAnother(t *testing.T, s *suite) {
	s.put(s.m, "k", "a")
	rs := s.lease(s.m, 1, "k")
	other := s.open(t)
	require.ErrorIs(t, other.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs)}), gearsfs.ErrGone)
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs)}))
}

func peek(t *testing.T, s *suite) {
	s.put(s.m, "k", "a", "b", "c")
	for range 2 {
		rs, err := s.m.Peek(s.ctx, dgm.Peek{File: queue, Key: "k", Max: 2})
		require.NoError(t, err)
		require.Equal(t, []string{"a", "b"}, texts(rs))
	}
	rs, err := s.m.Peek(s.ctx, dgm.Peek{File: queue, Key: "k", Last: true})
	require.NoError(t, err)
	require.Equal(t, []string{"c"}, texts(rs))
	s.lease(s.m, 1, "k")
	rs, err = s.m.Peek(s.ctx, dgm.Peek{File: queue, Key: "k"})
	require.NoError(t, err)
	require.Equal(t, []string{"b"}, texts(rs))
}

func peekFollow(t *testing.T, s *suite) {
	s.put(s.m, "k", "a", "b")
	rs, err := s.m.Peek(s.ctx, dgm.Peek{File: queue, Key: "k", Max: 10, Follow: true})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, texts(rs))
	after := rs[1].Place.Seq
	m := s.open(t)
	out := make(chan outcome, 1)
	go func() {
		rs, err := m.Peek(s.ctx, dgm.Peek{File: queue, Key: "k", Max: 10, Follow: true, After: after})
		out <- outcome{rs, err}
	}()
	s.untilWaiting(1)
	s.put(s.m, "k", "c")
	require.Equal(t, []string{"c"}, texts(s.receive(out)))
	require.Len(t, s.lease(s.m, 10, "k"), 3)
	rs, err = s.m.Peek(s.ctx, dgm.Peek{File: queue, Key: "k", Max: 10, Follow: true})
	require.NoError(t, err)
	require.Len(t, rs, 3, "leased records can be read")
}

func sealAndEnd(t *testing.T, s *suite) {
	out := s.takeLater(s.ctx, s.open(t), takeOf("k"))
	_, err := s.m.Put(s.ctx, dgm.Put{File: queue, Key: "k", Seal: true, Records: []gearsfs.NewRecord{{Data: []byte("a")}, {Data: []byte("b")}}})
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, texts(s.receive(out)))
	_, err = s.m.Put(s.ctx, dgm.Put{File: queue, Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("c")}}})
	require.ErrorIs(t, err, gearsfs.ErrSealed)
	rs := s.lease(s.m, 1, "k")
	out = s.takeLater(s.ctx, s.open(t), takeOf("k")) // not drained: b may come back
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs)}))
	require.ErrorIs(t, s.outcome(out).err, gearsfs.ErrEnd)
	_, err = s.m.Take(s.ctx, takeOf("k"))
	require.ErrorIs(t, err, gearsfs.ErrEnd)
	_, err = s.m.Peek(s.ctx, dgm.Peek{File: queue, Key: "k"})
	require.ErrorIs(t, err, gearsfs.ErrEnd)

	open := false
	require.NoError(t, s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{Seal: &open}))
	s.put(s.m, "k", "d")
	require.Equal(t, []string{"d"}, s.take(s.m, 1, "k"))
}

func (s *suite) limit(key gearsfs.Key, l gearsfs.Limits) {
	s.t.Helper()
	require.NoError(s.t, s.m.Configure(s.ctx, queue, key, dgm.StreamChange{Limits: &l}))
}

func fullPutWaits(t *testing.T, s *suite) {
	s.put(s.m, "k", "a", "b")
	s.limit("k", gearsfs.Limits{Records: 2})
	_, err := s.m.Put(s.ctx, dgm.Put{File: queue, Key: "k", NoWait: true, Records: []gearsfs.NewRecord{{Data: []byte("x")}}})
	require.ErrorIs(t, err, gearsfs.ErrFull)
	done := make(chan error, 1)
	m := s.open(t)
	go func() {
		_, err := m.Put(s.ctx, dgm.Put{File: queue, Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("c")}}})
		done <- err
	}()
	s.untilWaiting(1)
	require.Equal(t, []string{"a"}, s.take(s.m, 1, "k"))
	require.NoError(t, <-done)
	require.Equal(t, []string{"b", "c"}, s.take(s.m, 5, "k"))

	s.put(s.m, "k", "1", "2", "3") // more than the limit, into an empty stream
	ctx, cancel := context.WithCancel(s.ctx)
	go func() {
		_, err := m.Put(ctx, dgm.Put{File: queue, Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("never")}}})
		done <- err
	}()
	s.untilWaiting(1)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Equal(t, []string{"1", "2", "3"}, s.take(s.m, 5, "k"))
	s.empty(s.m, "k")
}

func fullPutsKeepOrder(t *testing.T, s *suite) {
	s.put(s.m, "k", "0")
	s.limit("k", gearsfs.Limits{Bytes: 100})
	m := s.open(t)
	var sent sync.WaitGroup
	for i := 1; i <= 20; i++ {
		before := s.waiting()
		sent.Go(func() {
			s.put(m, "k", fmt.Sprintf("%d %s", i, strings.Repeat("x", 60)))
		})
		if i > 1 {
			s.untilWaiting(before + 1)
		} else {
			sent.Wait()
		}
	}
	var got []string
	for len(got) < 21 {
		for _, text := range s.take(s.m, 1, "k") {
			got = append(got, strings.Fields(text)[0])
		}
	}
	sent.Wait()
	for i, text := range got {
		require.Equal(t, fmt.Sprint(i), text)
	}
}

func clearAndDrop(t *testing.T, s *suite) {
	s.put(s.m, "k", "a", "b")
	rs := s.lease(s.m, 1, "k")
	require.NoError(t, s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{Clear: true}))
	require.ErrorIs(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs)}), gearsfs.ErrGone)
	s.empty(s.m, "k")
	require.Greater(t, s.put(s.m, "k", "c").First, gearsfs.Seq(2), "a seq is never used again")
	require.NoError(t, s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{Drop: true}))
	infos, err := s.m.ListStreams(s.ctx, queue, "", 10)
	require.NoError(t, err)
	for _, info := range infos {
		require.NotEqual(t, gearsfs.Key("k"), info.Key)
	}
	require.ErrorIs(t, s.m.Configure(s.ctx, queue, gearsfs.DataKey, dgm.StreamChange{Drop: true}), gearsfs.ErrInvalid)
}

func removedWhileWaiting(t *testing.T, s *suite) {
	s.put(s.m, "there", "x")
	out := s.takeLater(s.ctx, s.open(t), takeOf("k"))
	require.NoError(t, s.m.Unlink(s.ctx, gearsfs.RootIno, "queue"))
	require.ErrorIs(t, s.outcome(out).err, gearsfs.ErrRemoved)
}

func takeOnBlocks(t *testing.T, s *suite) {
	attr, err := s.m.Make(s.ctx, gearsfs.RootIno, "queue", dgm.Make{Mode: fileMode})
	require.NoError(t, err)
	_, err = s.m.Write(s.ctx, attr.Ino, 0, []byte("written"))
	require.NoError(t, err)
	_, err = s.m.Take(s.ctx, takeOf(gearsfs.DataKey))
	require.ErrorIs(t, err, gearsfs.ErrBlocks)
	rs, err := s.m.Take(s.ctx, dgm.Take{File: queue, Keys: []gearsfs.Key{gearsfs.DataKey}, Force: true})
	require.NoError(t, err)
	require.Equal(t, []string{"written"}, texts(rs))
}

func badInput(t *testing.T, s *suite) {
	record := []gearsfs.NewRecord{{Data: []byte("x")}}
	for _, key := range []gearsfs.Key{"", ".", "..", "a/b", "a,b", "a\x00", "a\n", gearsfs.Key(strings.Repeat("k", 251))} {
		_, err := s.m.Put(s.ctx, dgm.Put{File: queue, Key: key, Records: record})
		require.ErrorIs(t, err, gearsfs.ErrKey, "%q", key)
		_, err = s.m.Take(s.ctx, takeOf(key))
		require.ErrorIs(t, err, gearsfs.ErrKey, "%q", key)
		_, err = s.m.Peek(s.ctx, dgm.Peek{File: queue, Key: key})
		require.ErrorIs(t, err, gearsfs.ErrKey, "%q", key)
	}
	_, err := s.m.Put(s.ctx, dgm.Put{File: queue, Key: "k", Records: []gearsfs.NewRecord{{Data: make([]byte, gearsfs.RecordBytesMax+1)}}})
	require.ErrorIs(t, err, gearsfs.ErrTooBig)
	_, err = s.m.Take(s.ctx, dgm.Take{File: queue, Keys: []gearsfs.Key{"k"}, Max: -1})
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
	_, err = s.m.Take(s.ctx, dgm.Take{File: queue})
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
	_, err = s.m.Put(s.ctx, dgm.Put{File: gearsfs.File{Path: "relative"}, Key: "k", Records: record})
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
	_, err = s.m.Put(s.ctx, dgm.Put{File: gearsfs.At("/"), Key: "k", Records: record})
	require.ErrorIs(t, err, gearsfs.ErrIsDir)
	_, err = s.m.Put(s.ctx, dgm.Put{File: gearsfs.At("/no/dir"), Key: "k", Records: record})
	require.ErrorIs(t, err, gearsfs.ErrNotFound)
	s.put(s.m, "k", "x")
	_, err = s.m.Put(s.ctx, dgm.Put{File: gearsfs.At("/queue/below"), Key: "k", Records: record})
	require.ErrorIs(t, err, gearsfs.ErrNotDir)
	_, err = s.m.Peek(s.ctx, dgm.Peek{File: gearsfs.ByIno(4711), Key: "k", NoWait: true})
	require.ErrorIs(t, err, gearsfs.ErrStale)
	require.Error(t, s.m.Settle(s.ctx, dgm.Settle{}))
}

func listStreams(t *testing.T, s *suite) {
	for i := range 25 {
		s.put(s.m, gearsfs.Key(fmt.Sprintf("key%02d", i)), "x")
	}
	var keys []gearsfs.Key
	after := gearsfs.Key("")
	for {
		infos, err := s.m.ListStreams(s.ctx, queue, after, 10)
		require.NoError(t, err)
		if len(infos) == 0 {
			break
		}
		for _, info := range infos {
			if info.Key != gearsfs.DataKey {
				keys = append(keys, info.Key)
				require.Equal(t, uint64(1), info.Records)
			}
			after = info.Key
		}
	}
	require.Len(t, keys, 25)
	require.IsIncreasing(t, keys)
	info, err := s.m.Stream(s.ctx, queue, "absent")
	require.NoError(t, err)
	require.Zero(t, info.Records)
}

func eachRecordOnce(t *testing.T, s *suite) {
	const putters, takers, each = 4, 4, 250
	var wg sync.WaitGroup
	for p := range putters {
		m := s.open(t)
		wg.Go(func() {
			for i := range each {
				s.put(m, "k", fmt.Sprintf("%d %d", p, i))
			}
		})
	}
	got := make(chan gearsfs.Record, putters*each)
	var taking sync.WaitGroup
	for range takers {
		m := s.open(t)
		taking.Go(func() {
			for {
				rs, err := m.Take(s.ctx, dgm.Take{File: queue, Keys: []gearsfs.Key{"k"}, Max: 3})
				if gearsfs.CodeOf(err) == gearsfs.ErrEnd.Code {
					return
				}
				require.NoError(t, err)
				for _, r := range rs {
					got <- r
				}
			}
		})
	}
	wg.Wait()
	sealed := true
	require.NoError(t, s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{Seal: &sealed}))
	taking.Wait()
	close(got)
	last := make(map[int]int)
	bySeq := make(map[gearsfs.Seq]string)
	for r := range got {
		require.NotContains(t, bySeq, r.Place.Seq)
		bySeq[r.Place.Seq] = string(r.Data)
	}
	require.Len(t, bySeq, putters*each)
	first := slices.Min(slices.Collect(maps.Keys(bySeq)))
	for seq := first; seq < first+putters*each; seq++ {
		var p, i int
		_, err := fmt.Sscan(bySeq[seq], &p, &i)
		require.NoError(t, err)
		require.Equal(t, last[p], i, "order of putter %d", p)
		last[p]++
	}
}

// lastRecords has as many takes as records: none may be left waiting beside a
// record that was promised to another.
func lastRecords(t *testing.T, s *suite) {
	const takers, each = 16, 25
	for range takers {
		var rs []string
		for range each {
			rs = append(rs, "x")
		}
		s.put(s.m, "k", rs...)
	}
	var wg sync.WaitGroup
	for range takers {
		m := s.open(t)
		wg.Go(func() {
			for range each {
				if _, err := m.Take(s.ctx, takeOf("k")); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	s.empty(s.m, "k")
}

package dgmtest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// soon is a time that passes while a test waits.
const soon = 50 * time.Millisecond

func (s *suite) set(key gearsfs.Key, set dgm.SettingsChange) {
	s.t.Helper()
	require.NoError(s.t, s.m.Configure(s.ctx, queue, key, dgm.StreamChange{Set: set}))
}

func (s *suite) info(key gearsfs.Key) gearsfs.StreamInfo {
	s.t.Helper()
	info, err := s.m.Stream(s.ctx, queue, key)
	require.NoError(s.t, err)
	return info
}

// leaseFor leases the first record under a deadline.
func (s *suite) leaseFor(m dgm.Manager, take dgm.Take) gearsfs.Record {
	s.t.Helper()
	take.File, take.Keys, take.Lease = queue, []gearsfs.Key{"k"}, true
	rs, err := m.Take(s.ctx, take)
	require.NoError(s.t, err)
	require.Len(s.t, rs, 1)
	return rs[0]
}

// leaseRunsOut: nothing but time gives the record back, to who waits for it.
func leaseRunsOut(t *testing.T, s *suite) {
	s.put(s.m, "k", "a")
	first := s.leaseFor(s.m, dgm.Take{LeaseFor: soon})
	require.WithinDuration(t, time.Now().Add(soon), first.Deadline, 10*time.Second)
	again, err := s.open(t).Take(s.ctx, takeOf("k"))
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, texts(again))
	require.EqualValues(t, 2, again[0].Deliveries)
	require.ErrorIs(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: []gearsfs.Receipt{*first.Receipt}}), gearsfs.ErrGone)
}

// leaseExtended: it ends when it was last extended to, and a fence rises with
// each grant.
func leaseExtended(t *testing.T, s *suite) {
	s.put(s.m, "k", "a")
	first := s.leaseFor(s.m, dgm.Take{LeaseFor: time.Hour})
	held := dgm.Settle{Receipts: []gearsfs.Receipt{*first.Receipt}}
	extend := held
	extend.Extend = soon
	require.NoError(t, s.m.Settle(s.ctx, extend))
	second := s.leaseFor(s.open(t), dgm.Take{LeaseFor: soon})
	require.Greater(t, second.Receipt.Fence, first.Receipt.Fence)
	require.ErrorIs(t, s.m.Settle(s.ctx, extend), gearsfs.ErrGone)
	third := s.leaseFor(s.m, dgm.Take{LeaseFor: time.Second})
	extend.Receipts, extend.Extend = []gearsfs.Receipt{*third.Receipt}, time.Hour
	require.NoError(t, s.m.Settle(s.ctx, extend))
	time.Sleep(1100 * time.Millisecond) // in which it would have run out
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: extend.Receipts}))
	require.Zero(t, s.info("k").Leased)
}

// leaseByReceipt: it outlives its session, and whoever has the receipt ends it.
func leaseByReceipt(t *testing.T, s *suite) {
	s.put(s.m, "k", "a", "b")
	m := s.open(t)
	r := s.leaseFor(m, dgm.Take{LeaseFor: time.Hour, ByReceipt: true})
	own := s.leaseFor(m, dgm.Take{LeaseFor: time.Hour})
	require.Equal(t, "b", string(own.Data))
	require.NoError(t, m.Close())
	require.Equal(t, []string{"b"}, s.take(s.m, 1, "k"), "the session's own lease ends with it")
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: []gearsfs.Receipt{*r.Receipt}}))
	s.empty(s.m, "k")
	_, err := s.m.Take(s.ctx, dgm.Take{File: queue, Keys: []gearsfs.Key{"k"}, Lease: true, ByReceipt: true})
	require.ErrorIs(t, err, gearsfs.ErrInvalid, "it would be held for ever")
}

// returnedLater: a record that comes back with a delay is not there before.
func returnedLater(t *testing.T, s *suite) {
	back := func(delay time.Duration) {
		r := s.leaseFor(s.m, dgm.Take{})
		require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: []gearsfs.Receipt{*r.Receipt}, Return: true, Delay: delay}))
	}
	s.put(s.m, "k", "a", "b")
	back(time.Hour)
	require.EqualValues(t, 1, s.info("k").Delayed)
	require.Equal(t, []string{"b"}, s.take(s.m, 2, "k"))
	s.empty(s.m, "k")
	s.put(s.m, "k", "c")
	back(soon)
	require.Equal(t, []string{"c"}, s.take(s.m, 2, "k"), "it waits for that")
}

// deadAfterTries: also where the last delivery ends by its deadline.
func deadAfterTries(t *testing.T, s *suite) {
	s.put(s.m, "k", "a")
	dead := s.takeLater(s.ctx, s.open(t), takeOf("k.dead"))
	r := s.leaseFor(s.m, dgm.Take{Tries: 2})
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: []gearsfs.Receipt{*r.Receipt}, Return: true}))
	r = s.leaseFor(s.m, dgm.Take{Tries: 2, LeaseFor: soon})
	require.EqualValues(t, 2, r.Deliveries)
	require.Equal(t, []string{"a"}, texts(s.receive(dead)))
	s.empty(s.m, "k")

	s.put(s.m, "k", "b")
	tries := uint32(1)
	s.set("k", dgm.SettingsChange{Tries: &tries})
	m := s.open(t)
	s.leaseFor(m, dgm.Take{})
	require.NoError(t, m.Close())
	require.Equal(t, []string{"b"}, s.take(s.m, 1, "k.dead"), "a dead worker has tried, too")
}

// delayedPut: a take that waits gets it when it is due, in the put's place.
func delayedPut(t *testing.T, s *suite) {
	out := s.takeLater(s.ctx, s.open(t), takeOf("k"))
	put := dgm.Put{File: queue, Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("later")}}, Delay: soon}
	res, err := s.m.Put(s.ctx, put)
	require.NoError(t, err)
	require.Equal(t, []string{"later"}, texts(s.receive(out)))
	put.Delay, put.At = 0, time.Now().Add(time.Hour)
	_, err = s.m.Put(s.ctx, put)
	require.NoError(t, err)
	require.EqualValues(t, 1, s.info("k").Delayed)
	require.Equal(t, res.First+2, s.put(s.m, "k", "now").First)
	require.Equal(t, []string{"now"}, s.take(s.m, 5, "k"))
	s.empty(s.m, "k")
	sealed := true
	require.NoError(t, s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{Seal: &sealed}))
	s.empty(s.m, "k") // there is one to come, so it has not ended
}

// ageMakesRoom: what is discarded because of its age makes room, by time alone.
func ageMakesRoom(t *testing.T, s *suite) {
	s.put(s.m, "k", "old")
	s.limit("k", gearsfs.Limits{Records: 1})
	waiting := s.putLater(s.ctx, s.open(t), "k", "new")
	age := soon
	s.set("k", dgm.SettingsChange{Age: &age})
	require.NoError(t, <-waiting)
	age = 0
	s.set("k", dgm.SettingsChange{Age: &age})
	require.GreaterOrEqual(t, s.info("k").Discarded, uint64(1))
}

// whatFullStreamsDo: they make puts wait, refuse them, or discard the oldest;
// puts that wait learn of a change of that.
func whatFullStreamsDo(t *testing.T, s *suite) {
	s.put(s.m, "k", "0")
	s.limit("k", gearsfs.Limits{Records: 1})
	first, second := s.putLater(s.ctx, s.open(t), "k", "1"), s.putLater(s.ctx, s.open(t), "k", "2")
	refuse, drop := gearsfs.FullRefuse, gearsfs.FullDropOldest
	s.set("k", dgm.SettingsChange{Full: &refuse})
	require.ErrorIs(t, <-first, gearsfs.ErrFull)
	require.ErrorIs(t, <-second, gearsfs.ErrFull)
	put := dgm.Put{File: queue, Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("3")}}}
	_, err := s.m.Put(s.ctx, put)
	require.ErrorIs(t, err, gearsfs.ErrFull)
	s.set("k", dgm.SettingsChange{Full: &drop})
	s.put(s.m, "k", "4")
	s.put(s.m, "k", "5")
	require.Equal(t, []string{"5"}, s.take(s.m, 5, "k"))
	info := s.info("k")
	require.EqualValues(t, 2, info.Discarded)
	require.Equal(t, drop, info.Settings.Full)
}

// settings come back as they were set, each by itself.
func settings(t *testing.T, s *suite) {
	age, full, tries, typ, window, yes := time.Hour, gearsfs.FullRefuse, uint32(3), "job", time.Minute, true
	s.put(s.m, "k", "x")
	all := gearsfs.Settings{Age: age, Full: full, Tries: tries, Type: typ, IDWindow: window, AppendOnly: true}
	s.set("k", dgm.SettingsChange{Age: &age, Full: &full, Tries: &tries})
	s.set("k", dgm.SettingsChange{Type: &typ, IDWindow: &window, AppendOnly: &yes})
	require.Equal(t, all, s.info("k").Settings)
	infos, err := s.m.ListStreams(s.ctx, queue, "", 10)
	require.NoError(t, err)
	require.Equal(t, all, infos[len(infos)-1].Settings)
	_, err = s.m.Put(s.ctx, dgm.Put{File: queue, Key: "k", Records: []gearsfs.NewRecord{{Type: "other"}}})
	require.ErrorIs(t, err, gearsfs.ErrType)
	require.ErrorContains(t, err, "job")
	require.ErrorContains(t, err, "other")
}

// idsOnce: what has an id goes in once, a retry learns where.
func idsOnce(t *testing.T, s *suite) {
	put := dgm.Put{File: queue, Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("a"), ID: "1"}}}
	first, err := s.m.Put(s.ctx, put)
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, s.take(s.m, 1, "k"))
	again, err := s.open(t).Put(s.ctx, put)
	require.NoError(t, err)
	require.Equal(t, first, again)
	s.empty(s.m, "k")
	put.Records = append(put.Records, gearsfs.NewRecord{Data: []byte("b"), ID: "2"}, gearsfs.NewRecord{Data: []byte("c")})
	res, err := s.m.Put(s.ctx, put)
	require.NoError(t, err)
	require.Equal(t, []gearsfs.Seq{first.Last + 1, first.Last + 2}, []gearsfs.Seq{res.First, res.Last})
	require.Equal(t, []string{"b", "c"}, s.take(s.m, 5, "k"))
}

// goneWhenAcknowledged: a peek waits until records are gone, leased ones are not.
func goneWhenAcknowledged(t *testing.T, s *suite) {
	s.put(s.m, "k", "before")
	res := s.put(s.m, "k", "a", "b")
	peek := dgm.Peek{File: queue, Key: "k", After: res.First - 1, Gone: res.Last}
	now := peek
	now.NoWait = true
	_, err := s.m.Peek(s.ctx, now)
	require.ErrorIs(t, err, gearsfs.ErrUnmet)
	gone := make(chan error, 1)
	m := s.open(t)
	go func() {
		_, err := m.Peek(s.ctx, peek)
		gone <- err
	}()
	s.untilWaiting(1)
	rs := s.lease(s.m, 3, "k")
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs[1:2])}))
	s.put(s.m, "k", "behind")
	s.untilWaiting(1)
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs[2:])}))
	require.NoError(t, <-gone)
	_, err = s.m.Peek(s.ctx, now)
	require.NoError(t, err)
	now.After, now.Gone = 0, res.First-1
	_, err = s.m.Peek(s.ctx, now)
	require.ErrorIs(t, err, gearsfs.ErrUnmet, "the one before is leased")
}

// inMemory: a stream whose records never touch the disk does what others do.
func inMemory(t *testing.T, s *suite) {
	s.put(s.m, "other", "x")
	waited := s.takeLater(s.ctx, s.open(t), takeOf("k"))
	yes, no := true, false
	err := s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{Set: dgm.SettingsChange{Memory: &yes}})
	if members, nodesErr := s.m.Nodes(s.ctx); nodesErr == nil && len(members) > 1 {
		require.ErrorIs(t, err, gearsfs.ErrUnsupported, "replicated streams are on disk")
		s.put(s.m, "k", "x")
		s.receive(waited)
		return
	}
	require.NoError(t, err)
	first := s.put(s.m, "k", "0")
	require.Equal(t, []string{"0"}, texts(s.receive(waited)), "it began to wait before")
	s.put(s.m, "k", "1", "2", "3")
	info := s.info("k")
	require.EqualValues(t, 3, info.Records)
	require.True(t, info.Settings.Memory)
	m := s.open(t)
	rs := s.lease(m, 1, "k")
	require.EqualValues(t, 1, s.info("k").Leased)
	require.Equal(t, []string{"2"}, s.take(s.m, 1, "k"))
	require.ErrorIs(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs)}), gearsfs.ErrGone, "it is of another session")
	require.NoError(t, m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs), Return: true}))
	rs = s.lease(m, 1, "k")
	require.Equal(t, []string{"1"}, texts(rs), "it is back at its place")
	require.EqualValues(t, 2, rs[0].Deliveries)
	require.NoError(t, m.Close())
	require.Equal(t, []string{"1", "3"}, s.take(s.m, 5, "k"))

	out := s.takeLater(s.ctx, s.open(t), takeOf("k"))
	s.put(s.m, "k", "4")
	require.Equal(t, []string{"4"}, texts(s.receive(out)))
	_, err = s.m.Put(s.ctx, dgm.Put{File: queue, Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("5")}}, Delay: soon})
	require.NoError(t, err)
	require.Equal(t, []string{"5"}, s.take(s.m, 1, "k"))
	s.limit("k", gearsfs.Limits{Records: 1})
	s.put(s.m, "k", "6")
	full := s.putLater(s.ctx, s.open(t), "k", "7")
	r := s.leaseFor(s.m, dgm.Take{LeaseFor: soon})
	require.Equal(t, "6", string(r.Data))
	require.Equal(t, []string{"6"}, s.take(s.m, 1, "k"), "its lease runs out")
	require.NoError(t, <-full)
	_, err = s.m.Update(s.ctx, dgm.Update{File: queue, Key: "k", Record: gearsfs.NewRecord{Data: []byte("8")}})
	require.NoError(t, err)
	seen, err := s.m.Peek(s.ctx, dgm.Peek{File: queue, Key: "k", Follow: true, After: first.Last})
	require.NoError(t, err)
	require.Equal(t, []string{"8"}, texts(seen))
	r = s.leaseFor(s.m, dgm.Take{Tries: 1})
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: []gearsfs.Receipt{*r.Receipt}, Return: true}))
	require.Equal(t, []string{"8"}, s.take(s.m, 1, "k.dead"))

	_, err = s.m.Transact(s.ctx, dgm.Transact{Steps: []dgm.Step{takeStep("k")}})
	require.ErrorIs(t, err, gearsfs.ErrUnsupported)
	require.ErrorIs(t, s.m.Configure(s.ctx, queue, gearsfs.DataKey, dgm.StreamChange{Set: dgm.SettingsChange{Memory: &yes}}), gearsfs.ErrUnsupported)
	s.put(s.m, "k", "9")
	require.ErrorIs(t, s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{Set: dgm.SettingsChange{Memory: &no}}), gearsfs.ErrInvalid)
	require.Equal(t, []string{"9"}, s.take(s.m, 1, "k"))
	require.NoError(t, s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{Seal: &yes}))
	_, err = s.m.Take(s.ctx, takeOf("k"))
	require.ErrorIs(t, err, gearsfs.ErrEnd)
	_, err = s.m.Put(s.ctx, dgm.Put{File: queue, Key: "k", Records: []gearsfs.NewRecord{{}}})
	require.ErrorIs(t, err, gearsfs.ErrSealed)
}

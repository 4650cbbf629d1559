package dgmtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

func takeStep(keys ...gearsfs.Key) dgm.Step {
	return dgm.Step{Take: &dgm.Take{File: queue, Keys: keys}}
}

func putStep(key gearsfs.Key, text string) dgm.Step {
	return dgm.Step{Put: &dgm.Put{File: queue, Key: key, Records: []gearsfs.NewRecord{{Data: []byte(text)}}}}
}

func tx(steps ...dgm.Step) dgm.Transact { return dgm.Transact{Steps: steps} }

// txOutcome is what a transaction in the background returned.
type txOutcome struct {
	results []dgm.StepResult
	err     error
}

// transactLater begins a transaction and returns when it waits.
func (s *suite) transactLater(ctx context.Context, m dgm.Manager, tx dgm.Transact) <-chan txOutcome {
	s.t.Helper()
	before := s.waiting()
	out := make(chan txOutcome, 1)
	go func() {
		results, err := m.Transact(ctx, tx)
		out <- txOutcome{results, err}
	}()
	s.untilWaiting(before + 1)
	return out
}

func (s *suite) transacted(out <-chan txOutcome) []dgm.StepResult {
	s.t.Helper()
	select {
	case o := <-out:
		require.NoError(s.t, o.err)
		return o.results
	case <-s.ctx.Done():
		s.t.Fatal("the transaction still waits")
		return nil
	}
}

// transact: the steps of one see what was before it, and happen together.
func transact(t *testing.T, s *suite) {
	s.put(s.m, "in", "a", "b")
	rs := s.lease(s.m, 1, "in")
	newest, empty := gearsfs.Seq(2), true
	results, err := s.m.Transact(s.ctx, tx(
		dgm.Step{Condition: &dgm.Condition{File: queue, Key: "in", Newest: &newest, AtLeast: 1}},
		dgm.Step{Condition: &dgm.Condition{File: queue, Key: "none", Empty: &empty}},
		dgm.Step{Look: &dgm.Look{File: queue, Key: "in", Max: 5}},
		dgm.Step{Settle: &dgm.Settle{Receipts: receipts(rs)}},
		takeStep("none", "in"),
		dgm.Step{Update: &dgm.Update{File: gearsfs.At("/other"), Key: "k", Record: gearsfs.NewRecord{Data: []byte("u")}}},
		putStep("in", "c"),
	))
	require.NoError(t, err)
	require.Equal(t, []string{"b"}, texts(results[2].Records))
	require.Equal(t, []string{"b"}, texts(results[4].Records))
	require.EqualValues(t, 3, results[6].Put.First)
	require.Equal(t, []string{"c"}, s.take(s.m, 5, "in"))
	other, err := s.m.Take(s.ctx, dgm.Take{File: gearsfs.At("/other"), Keys: []gearsfs.Key{"k"}})
	require.NoError(t, err)
	require.Equal(t, []string{"u"}, texts(other))
	require.Zero(t, s.info("in").Leased)
}

// transactRefused: what can't be is refused at once, and nothing is done.
func transactRefused(t *testing.T, s *suite) {
	s.put(s.m, "in", "a")
	rs := s.lease(s.m, 1, "in")
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs), Return: true}))
	seq := gearsfs.Seq(7)
	for _, test := range []struct {
		tx   dgm.Transact
		want error
		text string
	}{
		{tx(), gearsfs.ErrInvalid, ""},
		{tx(takeStep("in"), dgm.Step{}), gearsfs.ErrInvalid, "step 2"},
		{tx(takeStep("in"), dgm.Step{Settle: &dgm.Settle{Receipts: receipts(rs)}}), gearsfs.ErrGone, "step 2"},
		{tx(takeStep("none"), dgm.Step{Settle: &dgm.Settle{Receipts: receipts(rs)}}), gearsfs.ErrGone, "step 2"},
		{tx(takeStep("in"), dgm.Step{Update: &dgm.Update{File: queue, Key: "x", IfSeq: &seq}}), gearsfs.ErrUnmet, "step 2"},
		{dgm.Transact{NoWait: true, Steps: []dgm.Step{takeStep("in"), takeStep("in")}}, gearsfs.ErrEmpty, "step 2"},
		{dgm.Transact{NoWait: true, Steps: []dgm.Step{
			takeStep("in"), {Condition: &dgm.Condition{File: queue, Key: "in", Head: &seq}},
		}}, gearsfs.ErrUnmet, "step 2"},
	} {
		_, err := s.m.Transact(s.ctx, test.tx)
		require.ErrorIs(t, err, test.want)
		require.ErrorContains(t, err, test.text)
	}
	require.Equal(t, []string{"a"}, s.take(s.m, 5, "in"))
	require.Zero(t, s.waiting())
}

// transactWaits: A takes x and y, B takes x and z; given x and z, B runs and A
// holds nothing.
func transactWaits(t *testing.T, s *suite) {
	a := s.transactLater(s.ctx, s.open(t), tx(takeStep("x"), takeStep("y"), putStep("out", "A")))
	b := s.transactLater(s.ctx, s.open(t), tx(takeStep("x"), takeStep("z"), putStep("out", "B")))
	s.put(s.m, "x", "1")
	s.put(s.m, "z", "2")
	results := s.transacted(b)
	require.Equal(t, []string{"1"}, texts(results[0].Records))
	require.Equal(t, []string{"2"}, texts(results[1].Records))
	s.put(s.m, "y", "3")
	require.Equal(t, []string{"B"}, s.take(s.m, 5, "out"))
	s.put(s.m, "x", "4")
	s.transacted(a)
	require.Equal(t, []string{"A"}, s.take(s.m, 5, "out"))
	require.Zero(t, s.waiting())
}

// transactConditions: one waits for conditions and for room, too.
func transactConditions(t *testing.T, s *suite) {
	s.put(s.m, "k", "a")
	s.limit("k", gearsfs.Limits{Records: 1})
	yes, two, five := true, gearsfs.Seq(2), gearsfs.Seq(5)
	empty := s.transactLater(s.ctx, s.open(t), tx(dgm.Step{Condition: &dgm.Condition{File: queue, Key: "k", Empty: &yes}}, putStep("out", "empty")))
	room := s.transactLater(s.ctx, s.open(t), tx(putStep("k", "b"), putStep("out", "room")))
	head := s.transactLater(s.ctx, s.open(t), tx(dgm.Step{Condition: &dgm.Condition{File: queue, Key: "k", Head: &two}}, putStep("out", "head")))
	newest := s.transactLater(s.ctx, s.open(t), tx(dgm.Step{Condition: &dgm.Condition{File: queue, Key: "n", Newest: &five}}, putStep("out", "newest")))
	require.Equal(t, []string{"a"}, s.take(s.m, 1, "k"))
	for _, out := range []<-chan txOutcome{empty, room, head} {
		s.transacted(out)
	}
	for i := range 5 {
		s.untilWaiting(1)
		s.put(s.m, "n", fmt.Sprint(i))
	}
	s.transacted(newest)
	require.ElementsMatch(t, []string{"empty", "room", "head", "newest"}, s.take(s.m, 9, "out"))
	require.Equal(t, []string{"b"}, s.take(s.m, 9, "k"))
}

// transactNamesComeLater: it waits for a file that is missing, and ends when one
// that it waits at goes.
func transactNamesComeLater(t *testing.T, s *suite) {
	other := dgm.Step{Take: &dgm.Take{File: gearsfs.At("/other"), Keys: []gearsfs.Key{"k"}}}
	out := s.transactLater(s.ctx, s.open(t), tx(takeStep("k"), other))
	s.put(s.m, "k", "1")
	_, err := s.m.Put(s.ctx, dgm.Put{File: gearsfs.At("/other"), Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("2")}}})
	require.NoError(t, err)
	results := s.transacted(out)
	require.Equal(t, []string{"2"}, texts(results[1].Records))
	out = s.transactLater(s.ctx, s.open(t), tx(takeStep("k")))
	require.NoError(t, s.m.Unlink(s.ctx, gearsfs.RootIno, "queue"))
	require.ErrorIs(t, (<-out).err, gearsfs.ErrRemoved)
	ctx, cancel := context.WithCancel(s.ctx)
	out = s.transactLater(ctx, s.open(t), tx(takeStep("k")))
	cancel()
	require.ErrorIs(t, (<-out).err, context.Canceled)
	require.Zero(t, s.waiting())
}

// oldestFirst: of those that can run the oldest does, and how often another was
// passed over is counted.
func oldestFirst(t *testing.T, s *suite) {
	s.put(s.m, "y", "y") // first: a missing file that appears sends who waits for it to the log
	pair := s.transactLater(s.ctx, s.open(t), tx(takeStep("x"), takeStep("y")))
	take := s.takeLater(s.ctx, s.open(t), takeOf("x"))
	young := s.transactLater(s.ctx, s.open(t), tx(takeStep("x")))
	s.put(s.m, "x", "1")
	s.transacted(pair)
	s.put(s.m, "x", "2")
	s.receive(take)
	s.put(s.m, "x", "3")
	s.transacted(young)

	two := s.transactLater(s.ctx, s.open(t), tx(dgm.Step{Take: &dgm.Take{File: queue, Keys: []gearsfs.Key{"x"}, Max: 2}}))
	for range 3 {
		s.put(s.m, "x", "x")
		require.Len(t, s.take(s.m, 1, "x"), 1, "who can't run blocks nobody")
	}
	waits, err := s.m.Waits(s.ctx)
	require.NoError(t, err)
	require.Equal(t, "transaction", waits[0].Op)
	require.EqualValues(t, 3, waits[0].Passed)
	require.Equal(t, []gearsfs.Key{"x"}, waits[0].Keys)
	s.put(s.m, "x", "1", "2")
	require.Len(t, s.transacted(two)[0].Records, 2)
}

// randomSets: whatever sets workers wait for, all is taken that makes up whole
// sets, none twice, and nobody waits who could run.
func randomSets(t *testing.T, s *suite) {
	const workers, rounds = 8, 12
	keys := []gearsfs.Key{"a", "b", "c", "d", "e"}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var all sync.WaitGroup
	var left [5]atomic.Int64 // that are missing for all sets to be made up
	var done atomic.Int64
	var total int64
	sets := make([][][]int, workers)
	rng := rand.New(rand.NewPCG(seed, 1))
	for w := range sets {
		for range rounds {
			set := rng.Perm(len(keys))[:1+rng.IntN(3)]
			sets[w] = append(sets[w], set)
			for _, k := range set {
				left[k].Add(1)
			}
			total++
		}
	}
	for w := range sets {
		m := s.open(t)
		all.Go(func() {
			for i, set := range sets[w] {
				steps := []dgm.Step{putStep("out", fmt.Sprintf("%d/%d", w, i))}
				for _, k := range set {
					steps = append(steps, takeStep(keys[k]))
				}
				if _, err := m.Transact(s.ctx, dgm.Transact{Steps: steps}); err != nil {
					t.Errorf("worker %d, round %d: %v", w, i, err)
					return
				}
				done.Add(1)
			}
		})
	}
	for p := range 3 {
		m := s.open(t)
		rng := rand.New(rand.NewPCG(seed, uint64(p+2)))
		all.Go(func() {
			for _, k := range append(rng.Perm(len(keys)), rng.Perm(len(keys))...) {
				for left[k].Add(-1) >= 0 {
					s.put(m, keys[k], "x")
				}
				left[k].Add(1)
			}
		})
	}
	all.Wait()
	require.Equal(t, total, done.Load())
	require.Zero(t, s.waiting())
	for _, key := range keys {
		require.Zero(t, s.info(key).Records)
	}
	seen := make(map[string]bool)
	for _, text := range s.take(s.m, int(total)+1, "out") {
		require.False(t, seen[text], text)
		seen[text] = true
	}
	require.Len(t, seen, int(total))
}

// updates: a stream as a register, with no empty moment, and who watches it.
func updates(t *testing.T, s *suite) {
	update := func(text string, ifSeq *gearsfs.Seq) (dgm.PutResult, error) {
		return s.m.Update(s.ctx, dgm.Update{File: queue, Key: "k", Record: gearsfs.NewRecord{Data: []byte(text)}, IfSeq: ifSeq})
	}
	none := gearsfs.Seq(0)
	first, err := update("1", &none)
	require.NoError(t, err)
	_, err = update("2", &none)
	require.ErrorIs(t, err, gearsfs.ErrUnmet)
	rs := s.lease(s.m, 1, "k")
	seen := make(chan outcome, 1)
	m := s.open(t)
	go func() {
		rs, err := m.Peek(s.ctx, dgm.Peek{File: queue, Key: "k", Follow: true, After: first.Last})
		seen <- outcome{rs, err}
	}()
	s.untilWaiting(1)
	second, err := update("2", &first.Last)
	require.NoError(t, err)
	require.Greater(t, second.Last, first.Last)
	require.Equal(t, []string{"2"}, texts(s.receive(seen)))
	require.ErrorIs(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs)}), gearsfs.ErrGone)
	out := s.takeLater(s.ctx, s.open(t), takeOf("l"))
	_, err = s.m.Update(s.ctx, dgm.Update{File: queue, Key: "l", Record: gearsfs.NewRecord{Data: []byte("x")}})
	require.NoError(t, err)
	require.Equal(t, []string{"x"}, texts(s.receive(out)))
	require.Equal(t, []string{"2"}, s.take(s.m, 5, "k"))
}

// moveAndCopy: records go to another stream whole, and a file with all streams.
func moveAndCopy(t *testing.T, s *suite) {
	s.put(s.m, "k.dead", "a", "b", "c")
	out := s.takeLater(s.ctx, s.open(t), takeOf("k"))
	n, err := s.m.Move(s.ctx, queue, "k.dead", "k", 2)
	require.NoError(t, err)
	require.EqualValues(t, 2, n)
	require.Equal(t, []string{"a"}, texts(s.receive(out)))
	n, err = s.m.Move(s.ctx, queue, "k.dead", "k", 0)
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	_, err = s.m.Move(s.ctx, queue, "k", "k", 0)
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
	require.NoError(t, s.m.CopyFile(s.ctx, queue, gearsfs.At("/copy")))
	require.Equal(t, []string{"b", "c"}, s.take(s.m, 5, "k"))
	rs, err := s.m.Take(s.ctx, dgm.Take{File: gearsfs.At("/copy"), Keys: []gearsfs.Key{"k"}, Max: 5})
	require.NoError(t, err)
	require.Equal(t, []string{"b", "c"}, texts(rs))
	require.ErrorIs(t, s.m.CopyFile(s.ctx, gearsfs.At("/none"), gearsfs.At("/copy")), gearsfs.ErrNotFound)
}

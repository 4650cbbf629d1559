package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// counting counts the calls that settle.
type counting struct {
	dgm.Manager
	settled, transacted int
}

func (c *counting) Settle(ctx context.Context, s dgm.Settle) error {
	c.settled++
	return c.Manager.Settle(ctx, s)
}

func (c *counting) Transact(ctx context.Context, tx dgm.Transact) ([]dgm.StepResult, error) {
	c.transacted++
	return c.Manager.Transact(ctx, tx)
}

// leasedWorker returns a worker with one slot whose input are n records of the
// stream `in` of /q, which it has leased; with outputs it puts to `out`.
func leasedWorker(t *testing.T, addr string, n int, outputs bool) (w *worker, m *counting, sets []*set) {
	t.Helper()
	a := bareApp(nil)
	a.errs = new(bytes.Buffer)
	remote, err := dgm.Dial(t.Context(), addr, dgm.RemoteOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, remote.Close()) })
	m = &counting{Manager: remote}
	q := target{Manager: m, arg: ":/q", path: "/q"}
	put := dgm.Put{File: q.file(), Key: "in"}
	for i := range n {
		put.Records = append(put.Records, gearsfs.NewRecord{Data: fmt.Append(nil, i)})
	}
	_, err = m.Put(t.Context(), put)
	require.NoError(t, err)
	w = newWorker(a)
	w.jobs = 1
	w.inputs = []source{{volumeStream: volumeStream{q, "in"}, keys: []gearsfs.Key{"in"}, tries: 9}}
	if outputs {
		w.outputs = []volumeStream{{q, "out"}}
	}
	ctx, stop := context.WithCancelCause(t.Context())
	w.stop = stop
	w.keeper = startKeeper(m, workLease, false)
	t.Cleanup(w.keeper.close)
	sets, err = w.takeSets(ctx, n)
	require.NoError(t, err)
	require.Len(t, sets, n)
	w.push(ctx, sets)
	w.queue = nil
	return w, m, sets
}

// results are those of runs that have written their records.
func results(sets []*set) []result {
	all := make([]result, len(sets))
	for i, s := range sets {
		all[i] = result{set: s, yield: yield{stdout: s.records[0].Data}}
	}
	return all
}

// Runs are settled in one call.
func TestSettleTogether(t *testing.T) {
	addr := startNode(t)
	for _, outputs := range []bool{false, true} {
		w, m, sets := leasedWorker(t, addr, 20, outputs)
		w.settleAll(t.Context(), results(sets))
		assert.EqualValues(t, 20, w.done)
		assert.Equal(t, 1, m.settled+m.transacted, "calls")
		assert.Empty(t, w.keeper.held)
	}
	got := strings.Fields(cli(t, addr, nil, "take", ":/q", "out", "-n", "all").out)
	require.Len(t, got, 20)
	for i, record := range got {
		assert.Equal(t, fmt.Sprint(i), record)
	}
	runSteps(t, addr, []step{{line: "take :/q in --no-wait", status: 3, errs: "empty"}})
}

// Of runs that gathered, a lost lease and a failure stop only their own.
func TestSettleTogetherWithALostLease(t *testing.T) {
	addr := startNode(t)
	for _, outputs := range []bool{false, true} {
		w, m, sets := leasedWorker(t, addr, 5, outputs)
		require.NoError(t, m.Settle(t.Context(), dgm.Settle{Receipts: receipts(sets[1].records)}))
		all := results(sets)
		all[3].err = failuref("bad")
		w.settleAll(t.Context(), all)
		assert.EqualValues(t, []uint64{3, 1, 1}, []uint64{w.done, w.failed, w.lost})
		assert.Empty(t, w.keeper.held)
		info, err := m.Stream(t.Context(), gearsfs.At("/q"), "in")
		require.NoError(t, err)
		assert.EqualValues(t, 1, info.Delayed)
		require.NoError(t, m.Configure(t.Context(), gearsfs.At("/q"), "in", dgm.StreamChange{Clear: true}))
	}
	runSteps(t, addr, []step{{line: "take :/q out -n all", out: "0\n2\n4\n"}})
}

// Where there is room for some of what gathered, it does not wait for room for all.
func TestSettleTogetherIntoLittleRoom(t *testing.T) {
	w, m, sets := leasedWorker(t, startNode(t), 2, true)
	file := gearsfs.At("/q")
	_, err := m.Put(t.Context(), dgm.Put{File: file, Key: "out", Records: make([]gearsfs.NewRecord, 2)})
	require.NoError(t, err)
	require.NoError(t, m.Configure(t.Context(), file, "out", dgm.StreamChange{Limits: &gearsfs.Limits{Records: 3}}))
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		w.settleAll(t.Context(), results(sets))
	}()
	third, err := m.Peek(t.Context(), dgm.Peek{File: file, Key: "out", Follow: true, After: 2})
	require.NoError(t, err)
	assert.Equal(t, "0", string(third[0].Data))
	_, err = m.Take(t.Context(), dgm.Take{File: file, Keys: []gearsfs.Key{"out"}})
	require.NoError(t, err)
	<-settled
	assert.EqualValues(t, 2, w.done)
}

// Results gather until the time has come, there is no room for more, or no run
// goes on.
func TestGather(t *testing.T) {
	later := time.Now().Add(time.Hour)
	fresh := func(running int, last time.Time) *worker {
		w := newWorker(bareApp(nil))
		w.running, w.gathering.last = running, last
		return w
	}
	w := fresh(1, later)
	for range gatherMax {
		w.gather(result{})
	}
	assert.Len(t, w.gathered(), gatherMax, "full")

	w = fresh(1, later)
	w.gather(result{yield: yield{files: [][]byte{make([]byte, gatherBytesMax)}}})
	assert.Len(t, w.gathered(), 1, "full of bytes")

	w = fresh(1, later)
	w.gather(result{})
	w.mu.Lock()
	assert.False(t, w.gatheredLocked(), "a run goes on")
	w.mu.Unlock()
	w.ran(time.Second)
	w.gather(result{})
	assert.Len(t, w.gathered(), 2, "no other run goes on")

	w = fresh(1, time.Now())
	w.gather(result{})
	assert.Len(t, w.gathered(), 1, "the time has come")

	w = fresh(1, later)
	w.endGathering()
	assert.Empty(t, w.gathered(), "the end")
}

// What has no room waits in gather, for results to be settled.
func TestGatherWaitsForRoom(t *testing.T) {
	w := newWorker(bareApp(nil))
	const runs = 3*gatherMax + 1
	handed := make(chan struct{})
	go func() {
		defer close(handed)
		for range runs {
			w.gather(result{})
		}
		w.endGathering()
	}()
	got := 0
	for {
		results := w.gathered()
		assert.LessOrEqual(t, len(results), gatherMax)
		if got += len(results); len(results) == 0 {
			break
		}
	}
	<-handed
	assert.Equal(t, runs, got)
}

// With one slot outputs are in the order of the runs, also where there is only
// sometimes room for them.
func TestEachIntoFullOutput(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	const records = 200
	var lines strings.Builder
	for i := range records {
		fmt.Fprintln(&lines, i)
	}
	for jobs := 1; jobs <= 2; jobs++ {
		in, out := fmt.Sprint("in", jobs), fmt.Sprint("out", jobs)
		runSteps(t, addr, []step{
			{line: "put :/q " + in + " -l --seal", in: lines.String()},
			{line: "put :/q " + out + " -l", in: ""},
			{line: "set :/q " + out + " --records 3"},
		})
		_, ended := background(t, addr, "each", ":/q", in, "-j", fmt.Sprint(jobs), "--put", ":/q", out, "--seal", "--", "echo", "{}")
		got := cli(t, addr, nil, "take", ":/q", out, "-f")
		assert.Equal(t, outcome{}, <-ended)
		want, have := strings.Fields(lines.String()), strings.Fields(got.out)
		if jobs == 1 {
			assert.Equal(t, want, have)
		} else {
			assert.ElementsMatch(t, want, have)
		}
	}
}

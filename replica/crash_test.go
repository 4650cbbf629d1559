package replica

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/tests/bubble"
	"github.com/gearsfs/gearsfs/wire"
)

// crowd puts records from several goroutines until it is stopped, and knows
// which durable ones were acknowledged.
type crowd struct {
	mu    sync.Mutex
	acked []string
	stop  bool
	wg    sync.WaitGroup
}

func (c *crowd) start(t *testing.T, f *fixture, name string, seed uint64) {
	for p := range 4 {
		c.wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(p)))
			for i := 0; !c.stopped(); i++ {
				data, durable := fmt.Sprintf("%s %d %d", name, p, i), rnd.IntN(3) == 0
				wait := make(chan struct{})
				f.Propose(&Proposal{Command: put(data), Durable: durable, Done: func(_ *wire.Answer, err error) {
					if err != nil {
						t.Errorf("put %s: %v", data, err)
					}
					if durable {
						c.mu.Lock()
						c.acked = append(c.acked, data)
						c.mu.Unlock()
					}
					close(wait)
				}})
				if !durable && rnd.IntN(2) == 0 {
					<-wait
				}
			}
		})
	}
}

func (c *crowd) stopped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stop
}

// halt lets the goroutines end and returns what was acknowledged before.
func (c *crowd) halt() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop = true
	return slices.Clone(c.acked)
}

// checkPrefix holds what survived against all that there was.
func checkPrefix(t *testing.T, records, all, acked []string) {
	t.Helper()
	require.LessOrEqual(t, len(records), len(all))
	require.True(t, slices.Equal(all[:len(records)], records))
	for _, a := range acked {
		require.Contains(t, records, a)
	}
}

// TestCrash cuts the power at random moments under load, with any part of what
// was not synced lost: acknowledged durable puts are there, and the state is a
// prefix of what it was.
func TestCrash(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	resets, replayed := 0, 0
	for round := range 100 {
		log, machine := new(memLog), new(memMachine)
		for life := range 4 {
			// Syncs are held back so that much is unsynced now and then.
			gate := make(chan struct{})
			f := openTest(t, log, machine, func(_ *Config, l *limits) {
				l.flushBytes = uint64(500 + rnd.IntN(3000))
			})
			log.mu.Lock()
			log.syncGate = gate
			log.mu.Unlock()
			begin := len(machine.records())
			var c crowd
			c.start(t, f, fmt.Sprintf("%d.%d", round, life), rnd.Uint64())
			for range rnd.IntN(20) {
				gate <- struct{}{}
			}
			for target := begin + rnd.IntN(300); len(machine.records()) < target; {
				runtime.Gosched()
			}

			acked := c.halt()
			machine.mu.Lock()
			cutLog := log.crash(rnd.Uint64N(20))
			if rnd.IntN(4) == 0 {
				cutLog = log.crash(1 << 30) // the process died, not the machine
			}
			cut := &memMachine{state: machine.saved, saved: machine.saved}
			machine.mu.Unlock()
			close(gate)
			c.wg.Wait()
			require.NoError(t, f.Close())
			all := machine.records()

			if cutLog.Last() < cut.state.index {
				resets++
			}
			replayed += int(cutLog.Last() - min(cutLog.Last(), cut.state.index))
			cut = cut.restart()
			f = openTest(t, cutLog, cut, nil)
			checkPrefix(t, cut.records(), all, acked)
			require.NoError(t, f.Close())
			log, machine = cutLog, cut
		}
	}
	t.Logf("%d logs began anew, %d entries were replayed", resets, replayed)
	require.NotZero(t, resets)
	require.NotZero(t, replayed)
}

// TestReplayTwice crashes during recovery.
func TestReplayTwice(t *testing.T) {
	log, machine := new(memLog), new(memMachine)
	f := openTest(t, log, machine, nil)
	for i := range 50 {
		require.NoError(t, f.put(fmt.Sprint(i), false).err)
	}
	cut := log.crash(1 << 30)
	require.NoError(t, f.Close())
	for range 3 {
		again := openTest(t, cut, new(memMachine), nil)
		require.Equal(t, machine.records(), again.machine.records())
		next := cut.crash(1 << 30)
		require.NoError(t, again.Close())
		cut = next
	}
}

// TestFailures lets the i-th append or sync fail, for every i: every proposal is
// answered once, none well that is not there afterwards, and Fatal is called.
func TestFailures(t *testing.T) {
	const puts = 12
	for _, what := range []string{"append", "sync", "apply"} {
		for i := 1; ; i++ {
			log, machine := new(memLog), new(memMachine)
			f := openTest(t, log, machine, func(_ *Config, l *limits) { l.entryCommands = 2 })
			log.mu.Lock()
			switch what {
			case "append":
				log.failAppend = i
			case "sync":
				log.failSync = i
			}
			log.mu.Unlock()
			var outs []<-chan outcome
			for n := range puts {
				if what == "apply" && n == i {
					machine.mu.Lock()
					machine.fail = true
					machine.mu.Unlock()
				}
				outs = append(outs, f.start(fmt.Sprint(n), n%2 == 0))
				if n%3 == 0 { // else what follows shares its sync
					out := <-outs[n]
					again := make(chan outcome, 1)
					again <- out
					outs[n] = again
				}
			}
			err := f.Close()
			if err == nil {
				require.Empty(t, f.fatal)
				require.Greater(t, i, 1, "nothing failed at all")
				break
			}
			require.ErrorIs(t, err, errDisk)
			require.ErrorIs(t, <-f.fatal, errDisk)
			wantCode(t, gearsfs.ErrClosed, f.put("late", true).err)
			records := openTest(t, log.crash(0), machine.restart(), nil).machine.records()
			failed := 0
			for n, out := range outs {
				switch o := <-out; {
				case o.err != nil:
					failed++
					require.Contains(t, []gearsfs.Code{gearsfs.ErrMaybe.Code, gearsfs.ErrClosed.Code}, gearsfs.CodeOf(o.err))
				case n%2 == 0:
					require.Contains(t, records, fmt.Sprint(n), "%s %d", what, i)
				}
			}
			for _, out := range outs {
				require.Empty(t, out, "answered twice")
			}
			if what != "sync" {
				require.NotZero(t, failed)
			}
		}
	}
}

func TestOpenFails(t *testing.T) {
	t.Run("append", func(t *testing.T) {
		_, err := Open(testConfig(&memLog{failAppend: 1}, new(memMachine), nil))
		require.ErrorIs(t, err, errDisk)
		_, err = Open(testConfig(&memLog{failAppend: 2}, new(memMachine), nil))
		require.ErrorIs(t, err, errDisk)
	})
	t.Run("sync", func(t *testing.T) {
		_, err := Open(testConfig(&memLog{failSync: 1}, new(memMachine), nil))
		require.ErrorIs(t, err, errDisk)
	})
	t.Run("apply", func(t *testing.T) {
		_, err := Open(testConfig(new(memLog), &memMachine{fail: true}, nil))
		require.ErrorIs(t, err, errDisk)
	})
	t.Run("read", func(t *testing.T) {
		log := new(memLog)
		f := openTest(t, log, new(memMachine), nil)
		require.NoError(t, f.put("a", true).err)
		cut := &unreadable{memLog: log.crash(0)}
		require.NoError(t, f.Close())
		_, err := Open(testConfig(cut, new(memMachine), nil))
		require.ErrorIs(t, err, errDisk)
	})
}

// unreadable is a log whose disk does not give the entries back.
type unreadable struct{ *memLog }

func (l *unreadable) Entries(lo, hi, bytesMax uint64) ([]LogEntry, error) { return nil, errDisk }

// TestReclaim: what was let go of gives its space back by a flush, when it is
// much or when somebody waits for it.
func TestReclaim(t *testing.T) {
	var freed atomic.Uint64
	synctest.Test(t, func(t *testing.T) {
		machine := new(memMachine)
		f := openTest(t, new(memLog), machine, func(c *Config, l *limits) {
			c.Freed = freed.Load
			l.freedBytes = 1000
		})
		flushes := func(freeMore uint64) int {
			freed.Add(freeMore)
			require.NoError(t, (<-f.start("x", false)).err)
			synctest.Wait()
			machine.mu.Lock()
			defer machine.mu.Unlock()
			return machine.flushes
		}
		require.Equal(t, 0, flushes(999))
		require.Equal(t, 1, flushes(1), "much was let go of")
		require.Equal(t, 1, flushes(500))
		f.Reclaim()
		synctest.Wait()
		require.Equal(t, 2, machine.flushes, "somebody waits")
		f.Reclaim()
		require.Equal(t, 2, flushes(0), "there is nothing to give back")
		require.Equal(t, 3, flushes(1), "now there is")
		require.Equal(t, 3, flushes(1), "nobody waits any more")
		require.NoError(t, f.Close())
	})
}

// TestStall holds the state's flush up: proposals wait when the log above it has
// grown too much, and go on when it is done and the log cut.
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, machine := new(memLog), new(memMachine)
		flush := make(chan error, 1)
		machine.flushed = func() <-chan error { return flush }
		f := openTest(t, log, machine, func(_ *Config, l *limits) {
			l.flushBytes, l.replayBytes, l.entryCommands = 1000, 3000, 1
		})
		var outs []<-chan outcome
		for range 100 {
			outs = append(outs, f.start(strings.Repeat("x", 100), false))
		}
		synctest.Wait()
		stalledAt := len(machine.records())
		require.Less(t, stalledAt, 30)
		require.Greater(t, stalledAt, 10)
		require.Equal(t, 1, machine.flushes)
		require.Zero(t, log.cuts)

		flush <- errors.New("no room")
		synctest.Wait()
		require.Len(t, machine.records(), stalledAt, "a flush that failed frees nothing")
		bubble.Pass(2 * time.Second)
		require.Equal(t, 2, machine.flushes, "it is tried again")

		flush <- nil
		synctest.Wait()
		require.Greater(t, len(machine.records()), stalledAt)
		require.NotZero(t, log.cuts)
		require.Less(t, len(machine.records()), 100)
		machine.mu.Lock()
		machine.flushed = nil
		machine.mu.Unlock()
		flush <- nil
		require.NoError(t, f.Close())
		for _, out := range outs {
			require.NoError(t, (<-out).err)
		}
	})
}

func TestFlushFailsOnClose(t *testing.T) {
	log, machine := new(memLog), new(memMachine)
	f := openTest(t, log, machine, nil)
	require.NoError(t, f.put("a", true).err)
	machine.mu.Lock()
	machine.flushed = func() <-chan error {
		done := make(chan error, 1)
		done <- errDisk
		return done
	}
	machine.mu.Unlock()
	require.ErrorIs(t, f.Close(), errDisk)
	require.Empty(t, f.fatal)
	again := openTest(t, log, machine.restart(), nil)
	require.Equal(t, []string{"a"}, again.machine.records())
	require.NoError(t, again.Close())
}

package replica

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/tests/bubble"
)

// hold has each Sync from now on wait for a value of the channel that it returns.
func (l *memLog) hold() chan<- struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	gate := make(chan struct{})
	l.syncGate = gate
	return gate
}

// TestAnsweredByItsSync: of a single member's commands each is answered when a sync
// has ended that began behind its write, not when the one ends that was under way
// then. Where its sync fails it is in doubt, what came behind it is not made, and
// nothing is synced any more: what a power cut leaves is what was answered.
func TestAnsweredByItsSync(t *testing.T) {
	for _, quick := range []time.Duration{0, time.Hour} { // a goroutine of its own syncs; the loop does
		t.Run(fmt.Sprint(quick), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { answeredByItsSync(t, quick) })
		})
	}
}

func answeredByItsSync(t *testing.T, quick time.Duration) {
	log := new(memLog)
	f := openTest(t, log, new(memMachine), func(_ *Config, l *limits) { l.quickSync = quick })
	require.NoError(t, f.put("first", true).err) // its sync tells how long one takes
	disk := log.hold()
	defer func() {
		if t.Failed() { // so that the bubble ends
			close(disk)
			t.Log(f.Close())
		}
	}()
	own := f.start("own", true)
	synctest.Wait()
	require.Empty(t, own, "its sync is under way")
	var next []<-chan outcome
	for i := range 4 {
		next = append(next, f.start(fmt.Sprint("next ", i), true))
		synctest.Wait()
	}
	require.Empty(t, own)
	log.mu.Lock()
	log.failSync = 1
	log.mu.Unlock()
	disk <- struct{}{}
	synctest.Wait()
	require.Len(t, own, 1)
	require.NoError(t, (<-own).err)
	for _, out := range next {
		require.Empty(t, out, "it was written behind the begin of the sync that has ended")
	}
	last := f.start("last", true)
	synctest.Wait()

	disk <- struct{}{} // and that sync fails
	require.ErrorIs(t, <-f.fatal, errDisk)
	for _, out := range next {
		wantCode(t, gearsfs.ErrMaybe, (<-out).err)
	}
	require.Error(t, (<-last).err)
	require.ErrorIs(t, f.Close(), errDisk)
	require.NotContains(t, f.machine.records(), "last")
	require.Zero(t, log.failSync)
	syncs := log.syncs
	synctest.Wait()
	require.Equal(t, syncs, log.syncs)
	again := openTest(t, log.crash(0), f.machine.restart(), nil)
	require.Equal(t, []string{"first", "own"}, again.machine.records())
	require.NoError(t, again.Close())
}

// TestAppliedOnceOnDisk: in a group of several an entry is applied, and its command
// answered, when it is on the disks of a majority; and by a member not before it is
// on its own.
func TestAppliedOnceOnDisk(t *testing.T) {
	leaveSyncs := func(_ *Config, l *limits) { l.quickSync, l.followSync = 0, 0 }
	inCluster(t, 3, leaveSyncs, func(t *testing.T, c *cluster) {
		c.settled()
		leader, disks := c.leader(), make(map[uint64]chan<- struct{})
		c.settled()
		synctest.Wait()
		for id, n := range c.nodes {
			disks[id] = n.log.hold()
			defer close(disks[id])
		}
		out := leader.start("a", true)
		synctest.Wait()
		applied := func() (ids []uint64) {
			for id, n := range c.nodes {
				require.Equal(t, leader.log.Last(), n.log.Last(), "all have written it")
				if slices.Contains(n.machine.records(), "a") {
					ids = append(ids, id)
				}
			}
			slices.Sort(ids)
			return ids
		}
		require.Empty(t, applied(), "it is on no disk")
		disks[leader.id] <- struct{}{}
		synctest.Wait()
		require.Empty(t, applied(), "it is on one disk of three")
		require.Empty(t, out)
		one, other := leader.id%3+1, (leader.id+1)%3+1
		disks[one] <- struct{}{}
		synctest.Wait()
		require.Len(t, out, 1)
		require.NoError(t, (<-out).err)
		bubble.Pass(time.Second) // they hear that it is committed
		require.ElementsMatch(t, []uint64{leader.id, one}, applied())
		disks[other] <- struct{}{}
		synctest.Wait()
		require.Len(t, applied(), 3)
	})
}

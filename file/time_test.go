package file

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

const hour = 3600 * second

// leapBy has the next entry be the first of a leader whose clock is ahead.
func (r *rig) leapBy(nanoseconds uint64) {
	r.now += nanoseconds
	r.jump = nanoseconds
}

// TestLeasesOutliveAJump: a lease lasts as long as it was to last, wherever log
// time jumps to meanwhile, and from then on like any other.
func TestLeasesOutliveAJump(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("jobs", "a", "b", "c")).Ino
	short := c.must(leaseFor(30*second, 1, "jobs"))
	long := c.must(byReceipt(2*hour, 1, "jobs"))
	r.tick(10 * second)
	r.leapBy(hour)
	young := c.must(leaseFor(30*second, 1, "jobs"))
	require.EqualValues(t, 3, r.info(ino, "jobs").Leased)
	r.reopen()
	r.tick(18 * second)
	require.EqualValues(t, 3, r.info(ino, "jobs").Leased)
	require.Less(t, r.now, r.nextDue(), "nobody is rung for nothing")
	r.tick(3 * second)
	require.EqualValues(t, 2, r.info(ino, "jobs").Leased)
	_, err := c.ask(&wire.Settle{Receipts: receipts(short)})
	require.ErrorIs(t, err, gearsfs.ErrGone)
	r.tick(10 * second)
	require.EqualValues(t, 1, r.info(ino, "jobs").Leased)
	_, err = c.ask(&wire.Settle{Receipts: receipts(young)})
	require.ErrorIs(t, err, gearsfs.ErrGone)

	c.must(&wire.Settle{Receipts: receipts(long), Extend: 2 * hour})
	extended := r.now
	r.leapBy(3 * hour)
	r.tick(0)
	r.tick(extended + 5*hour - 2*second - r.now)
	require.EqualValues(t, 1, r.info(ino, "jobs").Leased)
	r.check()
	r.tick(3 * second)
	require.EqualValues(t, 0, r.info(ino, "jobs").Leased)
	require.Zero(t, r.nextDue())
}

// TestManyLeasesOutliveAJump has more leases than one entry looks at.
func TestManyLeasesOutliveAJump(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	var ino uint64
	const n = 2*timersMax + timersMax/2
	for range n / 500 {
		ino = c.must(putOp("jobs", make([]string, 500)...)).Ino
		c.must(leaseFor(30*second, 500, "jobs"))
	}
	r.leapBy(hour)
	for range 3 {
		r.tick(0)
	}
	require.EqualValues(t, n, r.info(ino, "jobs").Leased)
	require.Less(t, r.now, r.nextDue())
	r.check()
	for range 3 {
		r.tick(30 * second)
	}
	require.EqualValues(t, 0, r.info(ino, "jobs").Leased)
}

// TestAgesAndIDsOutliveAJump: records are not too old, and ids not forgotten,
// because a clock is ahead.
func TestAgesAndIDsOutliveAJump(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("other", "x"))
	c.must(settings("jobs", &wire.Settings{Age: ptr(30 * second), IdWindow: ptr(30 * second)}))
	put := putOp("jobs", "a")
	put.Records[0].Id = "1"
	ino := c.must(put).Ino
	r.leapBy(hour)
	require.EqualValues(t, 1, c.must(put).FirstSeq, "it is known")
	require.EqualValues(t, 1, r.info(ino, "jobs").Records)
	require.Less(t, r.now, r.nextDue(), "nobody is rung for nothing")
	r.tick(29 * second)
	require.EqualValues(t, 1, c.must(put).FirstSeq)
	r.tick(second)
	require.EqualValues(t, 1, r.info(ino, "jobs").Discarded)
	require.EqualValues(t, 2, c.must(put).FirstSeq, "it is not known any more")
	r.check()
}

// TestSessionsOutliveAJump: one that has not been used is not too old because a
// clock is ahead, and the answers of one that is closed stay for its time to live.
func TestSessionsOutliveAJump(t *testing.T) {
	r := newRig(t)
	unused, closed := r.client(1), r.client(2)
	first := closed.command(putOp("jobs", "a"))
	first.Close = true
	answer, err := r.again(first)
	require.NoError(t, err)
	r.leapBy(hour)
	unused.must(putOp("jobs", "b"))
	r.tick(uint64(gearsfs.SessionTTL - time.Second))
	again, err := r.again(first)
	require.NoError(t, err)
	require.Equal(t, answer.String(), again.String())
	late := &client{rig: r, id: gearsfs.SessionID{Minted: rigStart, Salt: 3}}
	r.tick(2 * second)
	_, err = late.ask(putOp("jobs", "c"))
	require.ErrorIs(t, err, gearsfs.ErrSession, "it is too old now")
}

// TestDelaysFollowTheClock: until when a record waits is a time of day.
func TestDelaysFollowTheClock(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	put := putOp("jobs", "a")
	put.Delay = 30 * 60 * second
	ino := c.must(put).Ino
	r.leapBy(hour)
	r.tick(0)
	require.EqualValues(t, 1, r.info(ino, "jobs").Records)
}

// TestManyJumps: the volume does not remember all small jumps, and what lies
// before them is not older for that than by their sum.
func TestManyJumps(t *testing.T) {
	r := newRig(t)
	start, was := r.now, make([]uint64, 100)
	for i := range uint64(40) {
		by := second
		if i == 2 {
			by = hour
		}
		r.leapBy(by)
		r.tick(0)
		passed := r.now - start - r.m.jumped()
		require.EqualValues(t, (i+1)*1e6, passed)
		require.LessOrEqual(t, len(r.m.volume.Jumps), jumpsMax)
		require.Equal(t, r.now, r.m.since(start, passed))
		require.GreaterOrEqual(t, r.m.ago(passed), start)
		require.LessOrEqual(t, r.m.ago(passed+40*second), start)
		if i < jumpsMax {
			require.Equal(t, start, r.m.ago(passed))
		}
		require.Equal(t, r.now, r.m.ago(0))
		for d := range was {
			ago := r.m.ago(uint64(d) * 5e5)
			require.GreaterOrEqual(t, ago, was[d], "it never falls")
			require.GreaterOrEqual(t, r.m.since(ago+1, uint64(d)*5e5), r.now, "what is too old was due")
			was[d] = ago
		}
	}
	r.check()
}

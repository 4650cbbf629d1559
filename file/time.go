package file

import (
	"math"

	"github.com/gearsfs/gearsfs/wire"
)

// Log time is the clock of whoever leads, so it can jump ahead when a tenure
// begins, by as much as that clock is ahead of the last one's. How far, the first
// entry of the tenure tells. What may go too early must not go because of it: a
// lease, an age, the window of ids and a session's time to live run as if log
// time had stood still there. A leader does not know how long its process did
// not run, so they stand still then, too. A delay does not: until when a record
// waits is a time of day.

// jumpsMax bounds how many jumps are told apart.
const jumpsMax = 8

// passTime is the begin of an entry.
func (m *Machine) passTime(e *wire.Entry) {
	was := m.volume.LogTime
	m.volume.LogTime = max(was, e.Time)
	by := min(e.Jump, m.volume.LogTime-was)
	if was == 0 || by == 0 {
		return
	}
	jumps := append(m.volume.Jumps, &wire.Jump{At: m.volume.LogTime, By: by})
	if len(jumps) > jumpsMax {
		jumps = joinJumps(jumps)
	}
	m.volume.Jumps = jumps
}

// joinJumps makes the least jump that has one before it a part of that. What is
// older than the jump then counts as older than it is, by as much at most.
func joinJumps(jumps []*wire.Jump) []*wire.Jump {
	least := 1
	for i := 2; i < len(jumps); i++ {
		if jumps[i].By < jumps[least].By {
			least = i
		}
	}
	jumps[least-1].By += jumps[least].By
	return append(jumps[:least], jumps[least+1:]...)
}

// jumped is the sum of all jumps.
func (m *Machine) jumped() uint64 { return jumped(&m.volume) }

func jumped(volume *wire.VolumeRow) (sum uint64) {
	for _, j := range volume.Jumps {
		sum += j.By
	}
	return sum
}

// ago is the log time from which so many nanoseconds have passed without the
// jumps. It never falls.
func (m *Machine) ago(nanoseconds uint64) uint64 {
	time := less(m.volume.LogTime, nanoseconds)
	for i := len(m.volume.Jumps) - 1; i >= 0 && time < m.volume.Jumps[i].At; i-- {
		time = less(time, m.volume.Jumps[i].By)
	}
	return time
}

// since is the log time at which so many nanoseconds will have passed since
// another without the jumps, those to come excepted.
func (m *Machine) since(time, nanoseconds uint64) uint64 {
	for i := len(m.volume.Jumps) - 1; i >= 0 && time < m.volume.Jumps[i].At; i-- {
		nanoseconds = later(nanoseconds, m.volume.Jumps[i].By)
	}
	return later(time, nanoseconds)
}

// later is a log time so many nanoseconds behind another.
func later(time, nanoseconds uint64) uint64 {
	if nanoseconds > math.MaxUint64-1-time {
		return math.MaxUint64 - 1
	}
	return time + nanoseconds
}

// less is a log time so many nanoseconds before another, or the first.
func less(time, nanoseconds uint64) uint64 { return time - min(time, nanoseconds) }

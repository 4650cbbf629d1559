package dgm

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/replica"
)

// Follower is what a node that leads knows of another member, without asking it.
type Follower struct {
	Name       string
	Active     bool   // it was heard of within an election timeout
	Snapshot   bool   // it fetches a snapshot, or waits for one
	LagEntries uint64 // of the log, that it has not on disk as far as is known
	LagBytes   uint64 // about how much of the log that is
}

// Durations are counted by their length.
type Durations = replica.Durations

// Figures are what a node knows of itself and of those that follow it. Nobody
// is asked for them, so they are there also where no node leads.
type Figures struct {
	gearsfs.NodeStatus
	Followers []Follower // nil unless this node leads
	Counts    file.Counts
	Timings   replica.Timings
}

// Figures gathers them when it is called. It waits for no other node. Safe for concurrent use. Errors: gearsfs.ErrClosed.
func (v *Volume) Figures() (Figures, error) {
	if !v.enter() {
		return Figures{}, gearsfs.ErrClosed
	}
	defer v.leave()
	f := Figures{NodeStatus: v.nodeStatus(), Counts: v.machine.Counts(), Timings: v.group.Timings()}
	g := v.group.Status()
	for id, p := range g.Progress {
		row, ok := v.machine.MemberRow(id)
		if !ok || row.Removed {
			continue
		}
		last := uint64(g.Last)
		f.Followers = append(f.Followers, Follower{
			Name: row.Name, Active: p.Active, Snapshot: p.Snapshot,
			LagEntries: last - min(last, p.Match), LagBytes: p.BehindBytes,
		})
	}
	return f, nil
}

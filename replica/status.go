package replica

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
)

// Status describes a replica.
type Status struct {
	ID, Leader      uint64 // Leader is 0 where it is not known
	LeaderSince     time.Time
	Term            uint64
	Commit, Applied gearsfs.Index
	Durable         gearsfs.Index // log entries up to here are on this node's disk
	Last            gearsfs.Index // of the log
	LogBytes        uint64
	Voters          []gearsfs.MemberID
	Learners        []gearsfs.MemberID
	// Joint says that the voters are changing, as far as this node knows: they are
	// the old and the new ones, and need a majority of each. Until it is over here,
	// others may not be able to go on without who leads.
	Joint bool
	// Removed says that this node was a member and is none any more. It stays
	// as it is then.
	Removed bool
	// Progress is what a leader knows of the other members, else nil.
	Progress map[gearsfs.MemberID]Progress
}

// Progress is what a leader knows of another member.
type Progress struct {
	Match       uint64 // it has the log up to here on disk
	Next        uint64 // of the entry that it is sent next
	Active      bool   // it was heard of within an election timeout
	Snapshot    bool   // it fetches a snapshot, or waits for one
	BehindBytes uint64 // about how much of the log it lacks
}

// published are the figures of Status that the loop writes, those of the group
// about ten times a second.
type published struct {
	term, leader, commit, applied atomic.Uint64
	since                         atomic.Pointer[time.Time]
	group                         atomic.Pointer[groupFigures]
}

type groupFigures struct {
	voters, learners []gearsfs.MemberID
	removed, joint   bool
	quorums          [][]gearsfs.MemberID
	progress         map[gearsfs.MemberID]Progress
}

// Timings are how long a replica's work takes.
type Timings struct {
	Sync Durations // fdatasync(2) of the log
	// Commit is, of each entry that this replica put into the log as the leader and
	// somebody wants on disk, how long until that was answered: then it is on the
	// disks of a majority, and applied here. It has many commands where many come at
	// once.
	Commit Durations
}

// Timings returns them as of now.
func (g *Group) Timings() Timings {
	return Timings{Sync: g.disk.syncs.get(), Commit: g.disk.commits.get()}
}

// Quorums are the sets of voters of each of which a majority has to agree: one, or
// the new and the old ones while they change (Status.Joint). They are as of the last
// entry of raft's that was applied here, and must not be changed.
func (g *Group) Quorums() [][]gearsfs.MemberID { return g.status.group.Load().quorums }

// publish shows Status what the loop knows of the group. The figures are never
// changed afterwards.
func (g *Group) publish() {
	l := &g.loop
	f := &groupFigures{voters: memberIDs(l.conf.voters), learners: memberIDs(l.conf.learners)}
	f.joint = l.conf.joint
	for _, voters := range l.conf.quorums {
		f.quorums = append(f.quorums, memberIDs(voters))
	}
	f.removed = len(f.voters) > 0 && !l.conf.has(g.cfg.ID)
	if l.tenure && !l.conf.sole(g.cfg.ID) {
		f.progress = make(map[gearsfs.MemberID]Progress)
		g.eachMember(func(m member) {
			if m.id != g.cfg.ID {
				f.progress[gearsfs.MemberID(m.id)] = Progress{
					Match: m.match, Next: m.next, Active: m.active, Snapshot: m.snapshot,
				}
			}
		})
	}
	g.status.group.Store(f)
}

func memberIDs(ids []uint64) []gearsfs.MemberID {
	var out []gearsfs.MemberID
	for _, id := range ids {
		out = append(out, gearsfs.MemberID(id))
	}
	return out
}

// Status returns the replica's figures, each as of some moment during the call
// or a tenth of a second before.
func (g *Group) Status() Status {
	s := Status{
		ID:       g.cfg.ID,
		Leader:   g.status.leader.Load(),
		Term:     g.status.term.Load(),
		Commit:   gearsfs.Index(g.status.commit.Load()),
		Applied:  gearsfs.Index(g.status.applied.Load()),
		Durable:  gearsfs.Index(g.disk.syncedIndex()),
		Last:     gearsfs.Index(g.cfg.Log.Last()),
		LogBytes: g.cfg.Log.Bytes(),
	}
	if since := g.status.since.Load(); since != nil {
		s.LeaderSince = *since
	}
	f := g.status.group.Load()
	s.Voters, s.Learners, s.Removed = slices.Clone(f.voters), slices.Clone(f.learners), f.removed
	s.Joint = f.joint
	if f.progress != nil {
		s.Progress = make(map[gearsfs.MemberID]Progress, len(f.progress))
		for id, p := range f.progress {
			p.BehindBytes = g.cfg.Log.BytesFrom(p.Match)
			s.Progress[id] = p
		}
	}
	return s
}

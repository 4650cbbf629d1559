package replica

import (
	"fmt"
	"maps"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// A run without more words takes as many seeds as fit into simTime.
const (
	simTime      = 40 * time.Second
	tortureSeeds = 10_000
	progress     = 5 * time.Second // after the faults end
)

// TestSimulation runs whole groups through faults, one seed after the other.
//
//	GEARSFS_SEEDS=N     so many seeds
//	GEARSFS_SEED=S      this one, telling all that happens
//	GEARSFS_TORTURE=1   10,000 seeds
func TestSimulation(t *testing.T) {
	if text := os.Getenv("GEARSFS_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		require.NoError(t, simulate(seed, t.Logf).failure)
		return
	}
	for _, kept := range simKept {
		s := simulate(kept.seed, nil)
		require.NoError(t, s.failure, "GEARSFS_SEED=%d, which once showed that %s", kept.seed, kept.found)
	}
	seeds, until := uint64(math.MaxUint64), time.Now().Add(simTime)
	if os.Getenv("GEARSFS_TORTURE") != "" {
		seeds, until = tortureSeeds, time.Time{}
	}
	if text := os.Getenv("GEARSFS_SEEDS"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		seeds, until = n, time.Time{}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // there is much garbage, and little else
	began := time.Now()
	var total simTotals
	for seed := uint64(1); seed <= seeds && (until.IsZero() || time.Now().Before(until)); seed++ {
		s := simulate(seed, nil)
		require.NoError(t, s.failure, "GEARSFS_SEED=%d", seed)
		total.add(s)
	}
	t.Logf("%d seeds, %.0f a second: %+v", total.Seeds, float64(total.Seeds)/time.Since(began).Seconds(), total)
	require.NotZero(t, total.Snapshots)
}

// simTotals show that there was something to be checked.
type simTotals struct{ Seeds, Entries, Answers, Reads, Verifies, Terms, Lives, Snapshots int }

func (t *simTotals) add(s *sim) {
	t.Seeds++
	t.Entries += int(s.history.last())
	t.Answers += s.history.answers
	t.Reads += s.history.reads
	t.Verifies += s.history.verifies
	t.Terms += len(s.history.leaders)
	for _, n := range s.nodes {
		t.Lives += n.lives
		t.Snapshots += n.installs
	}
}

// TestSimulationRepeats runs some seeds twice: what happens depends on nothing
// else.
func TestSimulationRepeats(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		first, again := simulate(seed, nil), simulate(seed, nil)
		require.Equal(t, first.trace, again.trace, "seed %d", seed)
		require.Equal(t, first.order, again.order, "seed %d", seed)
		require.NotEqual(t, first.trace, simulate(seed+1000, nil).trace)
	}
}

// simulate runs one seed. Its failure is nil where all went well.
func simulate(seed uint64, say func(string, ...any)) *sim {
	s := newSim(seed, say)
	s.makePlan()
	s.note("plan: %+v", s.plan)
	defer func() {
		if r := recover(); r != nil {
			s.fail("panic: %v\n%s", r, debug.Stack())
		}
	}()
	s.seeded(func() {
		s.found()
		for range s.plan.clients {
			s.addClient()
		}
		s.after(s.between(0, 2*time.Second), s.trouble)
		s.near()
		s.verify()
		s.run(s.plan.lasts)
		if s.failure != nil {
			return
		}
		s.settle()
		s.finish()
	})
	return s
}

// finish holds the group to its promises when nothing disturbs it any more: it
// makes progress, and all nodes come to the same state.
func (s *sim) finish() {
	s.addClient()
	prober := s.clients[len(s.clients)-1]
	before := maps.Clone(s.history.members)
	goesOn := func() bool { return prober.done > 0 }
	// Who wins an election may be removed by the last entry of the log that it has
	// won with, and then there is another.
	if !s.runUntil(progress, goesOn) && (maps.Equal(before, s.history.members) || !s.runUntil(progress, goesOn)) {
		s.fail("no progress within %v after the last fault: %s", progress, s.standing())
		return
	}
	for _, c := range s.clients {
		c.left = 0
	}
	idle := func() bool {
		for _, c := range s.clients {
			if !c.dead && len(c.ops) > 0 {
				return false
			}
		}
		return true
	}
	if !s.runUntil(2*progress, idle) {
		s.fail("operations have no answer %v after the last fault: %s", 2*progress, s.standing())
		return
	}
	s.quiet = true
	still := func() bool {
		for _, n := range s.nodes {
			if at, _ := n.machine.Applied(); s.history.members[n.id] && (at != s.history.last() || n.calls > 0) {
				return false
			}
		}
		return true
	}
	if !s.runUntil(2*progress, still) {
		s.fail("nodes are behind, or owe answers, %v after the last operation: %s", 2*progress, s.standing())
		return
	}
	s.compare()
}

// compare holds all nodes to each other and to the history.
func (s *sim) compare() {
	var first *simNode
	for _, n := range s.nodes {
		if !s.history.members[n.id] {
			continue
		}
		if err := s.history.finally(n); err != nil {
			s.fail("%w", err)
			return
		}
		if first == nil {
			first = n
		} else if !sameRows(first.store.committed(), n.store.committed()) {
			s.fail("the states of nodes %d and %d differ", first.id, n.id)
			return
		}
	}
	s.mark(uint64(s.history.answers), uint64(s.history.reads), s.history.last())
}

func (s *sim) standing() (text string) {
	for _, n := range s.nodes {
		text += fmt.Sprintf("\nnode %d, up %v, removed %v, %d calls", n.id, n.up, n.removed, n.calls)
		if n.up && n.group != nil {
			text += fmt.Sprintf(": %+v", n.group.loop.node.BasicStatus())
		}
	}
	for _, c := range s.clients {
		if !c.dead {
			text += fmt.Sprintf("\nclient %d waits for %d operations", c.id, len(c.ops))
		}
	}
	return text
}

// found makes the group that the simulation begins with.
func (s *sim) found() {
	image := simImages()[s.plan.founders]
	s.history.begin(image.entries)
	for i := range s.plan.founders {
		s.addNode(gearsfs.MemberID(i+1), image)
		s.history.members[gearsfs.MemberID(i+1)] = true
	}
	for _, n := range s.nodes {
		n.start()
	}
}

func (s *sim) addNode(id gearsfs.MemberID, image simImage) *simNode {
	content := logContent{front: LogEntry{Index: image.index, Term: image.term}, hard: image.hard}
	n := &simNode{
		s: s, id: id, joined: image.tree == nil, log: &simLog{logContent: content, disk: content},
		store: newSimStore(image.tree), fetched: map[[2]uint64]simFetched{},
	}
	s.nodes = append(s.nodes, n)
	return n
}

// simImage is a volume that was just made, on the disks of its founders.
type simImage struct {
	index, term uint64
	hard        []byte
	tree        *simTree
	entries     []*wire.Entry // nil: a change of the group
}

// simImages are the groups to begin with, by how many founders they have.
var simImages = sync.OnceValue(func() map[int]simImage {
	images := map[int]simImage{}
	for _, founders := range []int{1, 2, 3, 5} {
		image, err := makeImage(founders)
		if err != nil {
			panic(err)
		}
		images[founders] = image
	}
	return images
})

func makeImage(founders int) (simImage, error) {
	image := simImage{term: 1}
	store := newSimStore(nil)
	machine, err := file.New(store, nil)
	if err != nil {
		return image, err
	}
	conf := &raftpb.ConfState{}
	for i := range founders {
		conf.Voters = append(conf.Voters, uint64(i+1))
	}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(conf)
	if err != nil {
		return image, err
	}
	commands := []*wire.Command{
		{Op: &wire.Command_Init{Init: &wire.Init{Id: make([]byte, 16), Name: "main"}}},
		{Op: &wire.Command_Make{Make: &wire.Make{Dir: uint64(gearsfs.RootIno), Name: "queue", Mode: 0o100644}}},
	}
	for _, key := range simKeys {
		configure := &wire.Configure{Target: &wire.Target{Ino: simFile}, Key: key, SetLimits: true}
		if key == simLimited {
			configure.LimitRecords = simLimit
		}
		commands = append(commands, &wire.Command{Op: &wire.Command_Configure{Configure: configure}})
	}
	image.entries = []*wire.Entry{nil, {Time: uint64(simStart - time.Minute), Commands: commands}}
	if err := machine.ApplyConf(1, 1, encoded, nil); err != nil {
		return image, err
	}
	answers, err := machine.Apply(2, 1, image.entries[1])
	for _, a := range answers {
		if a.Code != 0 {
			return image, gearsfs.FromCode(gearsfs.Code(a.Code), a.Reason)
		}
	}
	image.index, image.tree = 2, store.committed()
	if err == nil {
		image.hard, err = proto.Marshal(&raftpb.HardState{Term: &image.term, Commit: &image.index})
	}
	return image, err
}

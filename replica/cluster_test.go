package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/tests/bubble"
)

// cluster is a group whose members talk over a network in memory. It runs in a
// synctest bubble: its time is not the test's.
type cluster struct {
	t     *testing.T
	mu    sync.Mutex
	nodes map[uint64]*clusterNode
	cut   map[[2]uint64]bool // from, to
	sent  int                // messages
	drop  func(from, to uint64, message []byte) bool

	change func(*Config, *limits)
	fetch  time.Duration // how long a snapshot takes
	refuse error         // what fetching one ends with, if not nil
	made   int           // snapshots
	drops  int           // of them
	wg     sync.WaitGroup
}

// clusterNode is one member.
type clusterNode struct {
	*fixture
	c        *cluster
	id       uint64
	joined   bool
	up       bool
	incoming map[uint64]machineState // snapshots that were fetched, by index
	installs int
	terms    []string // what Leads was called with
}

// inCluster runs test with a group of the members 1 to n.
func inCluster(t *testing.T, n int, change func(*Config, *limits), test func(t *testing.T, c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{
			t: t, nodes: make(map[uint64]*clusterNode), cut: make(map[[2]uint64]bool),
			change: change, fetch: 50 * time.Millisecond,
		}
		defer c.clear()
		c.add(1, false)
		for id := 2; id <= n; id++ {
			c.join(uint64(id))
		}
		test(t, c)
		for _, n := range c.nodes {
			if n.up {
				n.stop()
			}
		}
		c.wg.Wait()
		require.Equal(t, c.made, c.drops, "snapshots that were made and not dropped")
	})
}

// clear ends what a failed test left, so that its bubble can end.
func (c *cluster) clear() {
	if c.t.Failed() {
		for _, n := range c.nodes {
			if n.up {
				n.fail(errors.New("the test failed"))
				c.t.Log(n.Close())
			}
		}
		c.wg.Wait()
	}
}

func (c *cluster) add(id uint64, joined bool) *clusterNode {
	n := &clusterNode{c: c, id: id, joined: joined, incoming: make(map[uint64]machineState)}
	n.fixture = &fixture{log: new(memLog), machine: new(memMachine)}
	c.mu.Lock()
	c.nodes[id] = n
	c.mu.Unlock()
	n.boot()
	return n
}

// join adds a member and waits until it is a voter.
func (c *cluster) join(id uint64) *clusterNode {
	c.t.Helper()
	n := c.add(id, true)
	c.addLearner(id)
	c.promoted(n)
	return n
}

// promoted waits until a learner is a voter, and says so itself.
func (c *cluster) promoted(n *clusterNode) {
	c.t.Helper()
	c.eventually("a voter", func() bool {
		s := n.Status()
		return slices.Contains(s.Voters, gearsfs.MemberID(n.id)) && !s.Joint
	})
}

func (c *cluster) addLearner(id uint64) {
	c.t.Helper()
	for {
		err := c.leader().AddLearner(context.Background(), gearsfs.MemberID(id), fmt.Append(nil, "add ", id))
		if err == nil {
			return
		}
		if !errors.Is(err, gearsfs.ErrBusy) && !errors.Is(err, gearsfs.ErrMaybe) && !errors.Is(err, gearsfs.ErrNotLeader) {
			require.NoError(c.t, err)
		}
		bubble.Spend(10 * time.Millisecond)
	}
}

func (n *clusterNode) boot() {
	n.c.t.Helper()
	n.fatal = make(chan error, 1)
	cfg, limits := testConfig(n.log, n.machine, n.fatal), defaultLimits
	cfg.ID, cfg.Joined, cfg.Peers, cfg.Snapshots = n.id, n.joined, n, (*nodeCopies)(n)
	cfg.Leads = func(leads bool, term uint64) {
		n.c.mu.Lock()
		defer n.c.mu.Unlock()
		n.terms = append(n.terms, fmt.Sprint(term, leads))
	}
	if n.c.change != nil {
		n.c.change(&cfg, &limits)
	}
	g, err := open(cfg, limits)
	require.NoError(n.c.t, err)
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.Group, n.up = g, true
}

// kill ends the node as a power cut does.
func (n *clusterNode) kill() {
	log, machine := n.log.crash(0), n.machine.restart()
	n.down()
	n.fail(errors.New("killed"))
	require.ErrorContains(n.c.t, n.Close(), "killed")
	n.replace(log, machine)
}

// stop closes the node.
func (n *clusterNode) stop() {
	require.NoError(n.c.t, n.Close())
	n.down()
	n.replace(n.log, n.machine.restart())
}

// replace gives the node's next life its disk.
func (n *clusterNode) replace(log *memLog, machine *memMachine) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.log, n.machine = log, machine
}

func (n *clusterNode) down() {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.up = false
}

// Send is the network's.
func (n *clusterNode) Send(to gearsfs.MemberID, messages [][]byte) {
	c := n.c
	c.mu.Lock()
	o, way := c.nodes[uint64(to)], [2]uint64{n.id, uint64(to)}
	lost := o == nil || !o.up || !n.up || c.cut[way]
	c.sent += len(messages)
	drop := c.drop
	c.mu.Unlock()
	if lost {
		return
	}
	for _, m := range messages {
		if drop == nil || !drop(n.id, uint64(to), m) {
			o.Enter()
			o.Receive(slices.Clone(m))
			o.Leave()
		}
	}
}

// nodeCopies is a member as Snapshots.
type nodeCopies clusterNode

var (
	_ Peers     = (*clusterNode)(nil)
	_ Snapshots = (*nodeCopies)(nil)
)

func (n *nodeCopies) Make(done func(SnapshotMeta, error)) {
	n.c.mu.Lock()
	n.c.made++
	n.c.mu.Unlock()
	n.c.wg.Go(func() {
		n.machine.mu.Lock()
		state := n.machine.state
		state.records, state.sizes = slices.Clone(state.records), slices.Clone(state.sizes)
		n.machine.mu.Unlock()
		bubble.Spend(10 * time.Millisecond)
		done(SnapshotMeta{Index: state.index, Term: state.term, Conf: state.conf, Data: state}, nil)
	})
}

func (n *nodeCopies) Send(to gearsfs.MemberID, message []byte, meta SnapshotMeta, done func(error)) {
	c := n.c
	c.wg.Go(func() {
		c.mu.Lock()
		wait, err, o := c.fetch, c.refuse, c.nodes[uint64(to)]
		c.mu.Unlock()
		bubble.Spend(wait)
		if err != nil {
			done(err)
			return
		}
		c.mu.Lock()
		o.incoming[meta.Index] = meta.Data.(machineState)
		up, group, machine := o.up, o.Group, o.machine
		c.mu.Unlock()
		if !up {
			done(errors.New("the member went away"))
			return
		}
		group.Receive(message)
		for range 100 {
			if applied, _ := machine.Applied(); applied >= meta.Index {
				done(nil)
				return
			}
			bubble.Spend(10 * time.Millisecond)
		}
		done(errors.New("it was not installed"))
	})
}

func (n *nodeCopies) Drop(SnapshotMeta) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.c.drops++
}

func (n *nodeCopies) Install(index, term uint64, hard []byte) error {
	n.c.mu.Lock()
	state, ok := n.incoming[index]
	n.installs++
	n.c.mu.Unlock()
	if !ok || state.term != term {
		return fmt.Errorf("snapshot of %d was not fetched", index)
	}
	state.records, state.sizes = slices.Clone(state.records), slices.Clone(state.sizes)
	n.machine.mu.Lock()
	n.machine.state, n.machine.saved = state, state
	n.machine.mu.Unlock()
	if err := n.log.Reset(index, term); err != nil {
		return err
	}
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	n.log.hard, n.log.syncHard = hard, hard
	return nil
}

// figure reads a counter of the cluster.
func (c *cluster) figure(p *int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return *p
}

// ledIn returns what Leads was called with.
func (n *clusterNode) ledIn() []string {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return slices.Clone(n.terms)
}

// eventually waits until ok.
func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for range 6000 {
		if ok() {
			return
		}
		bubble.Spend(10 * time.Millisecond)
	}
	for id, n := range c.nodes {
		c.t.Logf("%d: %+v up %v", id, n.Status(), n.up)
	}
	c.t.Fatalf("never: %s", what)
}

func (g *Group) led() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.leading && !g.closing
}

// leader waits for a node that leads and that no partition keeps from a
// majority.
func (c *cluster) leader() *clusterNode {
	c.t.Helper()
	var leader *clusterNode
	c.eventually("a leader", func() bool {
		for _, n := range c.nodes {
			if n.up && n.led() && n.put("", false).err == nil {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

// follower returns a voter that does not lead.
func (c *cluster) follower() *clusterNode {
	c.t.Helper()
	leader := c.leader()
	for _, n := range c.nodes {
		if n.up && n != leader && slices.Contains(leader.Status().Voters, gearsfs.MemberID(n.id)) {
			return n
		}
	}
	c.t.Fatal("there is only one")
	return nil
}

// isolate cuts a node off from all others, or no more.
func (c *cluster) isolate(n *clusterNode, off bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.nodes {
		c.cut[[2]uint64{id, n.id}], c.cut[[2]uint64{n.id, id}] = off, off
	}
}

// setDrop has the network lose the messages of which drop says so.
func (c *cluster) setDrop(drop func(from, to uint64, message []byte) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop = drop
}

// settled waits until all nodes that are up have applied the same, and returns
// the records.
func (c *cluster) settled() []string {
	c.t.Helper()
	leader := c.leader()
	c.eventually("the same state", func() bool {
		for _, n := range c.nodes {
			if n.up && n.Status().Applied != leader.Status().Applied {
				return false
			}
		}
		return leader.Status().Applied == leader.Status().Last
	})
	want := leader.machine.records()
	for id, n := range c.nodes {
		if n.up {
			require.Equal(c.t, want, n.machine.records(), "node %d", id)
			require.Equal(c.t, leader.machine.ConfState(), n.machine.ConfState())
		}
	}
	return slices.DeleteFunc(slices.Clone(want), func(s string) bool { return s == "" })
}

// count puts n records one after the other, through whoever leads, and returns
// those that were acknowledged.
func (c *cluster) count(name string, n int) (acked []string) {
	c.t.Helper()
	for i := range n {
		data := fmt.Sprint(name, i)
		if err := c.leader().put(data, i%2 == 0).err; err == nil {
			acked = append(acked, data)
		}
	}
	return acked
}

func inOrderOf(t *testing.T, records, acked []string) {
	t.Helper()
	for _, r := range records {
		if len(acked) > 0 && r == acked[0] {
			acked = acked[1:]
		}
	}
	require.Empty(t, acked, "lost, or out of order")
}

func waitOut(t *testing.T, out <-chan outcome) outcome {
	t.Helper()
	select {
	case o := <-out:
		return o
	case <-time.After(time.Minute):
		t.Fatal("not answered")
		return outcome{}
	}
}

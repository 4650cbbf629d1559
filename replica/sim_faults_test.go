package replica

import (
	"fmt"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// simPlan is what a seed decides before it begins.
type simPlan struct {
	founders     int // voters at the beginning
	limits       limits
	keepLogBytes uint64
	grace        time.Duration // in which a client may come back
	think        time.Duration // between two operations of a client
	patience     time.Duration // of a client that hears nothing
	lasts        time.Duration // until the faults end
	pace         time.Duration // between two faults
	copying      time.Duration // of a snapshot, at most
	clients      int
	members      bool // they change
	reorder      bool // the network does
	jam          int  // of a hundred times that a node has something to do, it waits for more
}

func (s *sim) makePlan() {
	pick := func(of ...int) int { return of[s.rng.IntN(len(of))] }
	s.plan = simPlan{
		founders: pick(1, 2, 3, 3, 3, 3, 5),
		grace:    s.between(300*time.Millisecond, 3*time.Second),
		think:    s.between(20*time.Millisecond, 300*time.Millisecond),
		patience: s.between(300*time.Millisecond, 2*time.Second),
		lasts:    s.between(3*time.Second, 10*time.Second),
		pace:     s.between(100*time.Millisecond, 900*time.Millisecond),
		clients:  pick(1, 2, 3, 4),
		members:  s.chance(40),
		reorder:  s.chance(30),
		jam:      pick(0, 20, 60),
		copying:  time.Duration(pick(10, 300, 3000)) * time.Millisecond,
	}
	l := defaultLimits
	l.entryCommands = pick(1, 2, 8, 4096)
	l.flushBytes = uint64(pick(600, 2000, 8000))
	l.replayBytes = 4 * l.flushBytes
	l.flushRetry = 300 * time.Millisecond
	s.plan.limits = l
	s.plan.keepLogBytes = uint64(pick(1, 1000, 100_000))
}

// up and down are the nodes that run and those that could.
func (s *sim) choose(from func(n *simNode) bool) *simNode {
	var some []*simNode
	for _, n := range s.nodes {
		if from(n) {
			some = append(some, n)
		}
	}
	if len(some) == 0 {
		return nil
	}
	return some[s.rng.IntN(len(some))]
}

func isUp(n *simNode) bool      { return n.up && !n.paused }
func isLeading(n *simNode) bool { return isUp(n) && n.front.leads }

// victim is a node that runs, often the one that leads.
func (s *sim) victim() *simNode {
	if n := s.choose(isLeading); n != nil && s.chance(50) {
		return n
	}
	return s.choose(isUp)
}

// trouble lets one thing go wrong after another until the faults end.
func (s *sim) trouble() {
	if s.calm {
		return
	}
	s.fault()
	s.after(s.between(0, 2*s.plan.pace), s.trouble)
}

func (s *sim) fault() {
	n := s.victim()
	switch dice := s.rng.IntN(100); {
	case n == nil:
	case dice < 18:
		s.kill(n)
	case dice < 21:
		n.close()
	case dice < 25:
		s.note("all nodes crash")
		for _, n := range s.nodes {
			s.kill(n)
		}
	case dice < 35:
		n.pause(s.between(50*time.Millisecond, 4*time.Second))
	case dice < 55:
		s.partition()
	case dice < 62:
		s.noise()
	case dice < 68:
		n.wall = []time.Duration{-time.Hour, 0, time.Hour}[s.rng.IntN(3)] + s.between(-time.Second, time.Second)
		n.drift = s.rng.Int64N(200_000) - 100_000
		s.note("node %d: its clock is wrong by %v and drifts by %d", n.id, n.wall, n.drift)
	case dice < 74:
		n.slow = true
		s.note("node %d: its disk is slow", n.id)
		s.after(s.between(0, 4*time.Second), func() { n.slow = false })
	case dice < 77:
		if n.failSync = s.chance(50); !n.failSync {
			n.log.broken = errDisk
		}
		s.note("node %d: its disk fails", n.id)
	case dice < 87:
		s.clientTrouble()
	default:
		s.operate()
	}
}

// kill crashes a node and lets it come back after a while.
func (s *sim) kill(n *simNode) {
	if !n.up {
		return
	}
	n.crash()
	s.restart(n, s.between(time.Millisecond, 2*time.Second))
}

func (s *sim) restart(n *simNode, d time.Duration) {
	life := n.life
	s.after(d, func() {
		if n.life == life && (!n.removed || s.chance(50)) {
			n.start()
		}
	})
}

// partition cuts the network in one of several ways, for a while.
func (s *sim) partition() {
	cut := map[[2]gearsfs.MemberID]bool{}
	side := map[gearsfs.MemberID]int{}
	kind := s.rng.IntN(4)
	for i, at := range s.rng.Perm(len(s.nodes)) {
		id := s.nodes[at].id
		switch {
		case kind == 0 && i > 0: // one against all others
			side[id] = 1
		case kind == 3 && i == 0: // a bridge: one sees all, the others are halved
			side[id] = 2
		case kind != 0 && i%2 == 1:
			side[id] = 1
		}
	}
	for _, a := range s.nodes {
		for _, b := range s.nodes {
			x, y := side[a.id], side[b.id]
			cut[[2]gearsfs.MemberID{a.id, b.id}] = x != y && x != 2 && y != 2 && (kind != 2 || x < y)
		}
	}
	s.note("the network is cut, kind %d: %v", kind, side)
	for _, a := range s.nodes {
		for _, b := range s.nodes {
			s.link(a.id, b.id).cut = cut[[2]gearsfs.MemberID{a.id, b.id}]
		}
	}
	for _, c := range s.clients {
		for _, n := range s.nodes {
			c.cut[n.id] = kind < 3 && side[n.id] != c.id%2 && s.rng.IntN(2) == 0
		}
	}
	s.after(s.between(100*time.Millisecond, 5*time.Second), s.heal)
}

// heal makes the network whole.
func (s *sim) heal() {
	for _, a := range s.nodes {
		for _, b := range s.nodes {
			s.link(a.id, b.id).cut = false
		}
	}
	for _, c := range s.clients {
		clear(c.cut)
	}
}

// noise makes some ways through the network bad, or good again.
func (s *sim) noise() {
	for _, a := range s.nodes {
		for _, b := range s.nodes {
			l := s.link(a.id, b.id)
			l.loss, l.dup, l.max, l.reorder = 0, 0, 400*time.Microsecond, s.plan.reorder
			switch s.rng.IntN(4) {
			case 0:
				l.loss = s.rng.IntN(40)
			case 1:
				l.dup = s.rng.IntN(40)
			case 2:
				l.max = s.between(time.Millisecond, 500*time.Millisecond)
			}
		}
	}
}

func (s *sim) clientTrouble() {
	c := s.clients[s.rng.IntN(len(s.clients))]
	switch s.rng.IntN(4) {
	case 0:
		c.die()
		s.addClient()
	case 1:
		c.loss = s.rng.IntN(10)
	case 2:
		if c.conn != nil {
			c.drop(c.conn)
		}
	default:
		c.leaving = true
		s.after(s.between(0, time.Second), func() {
			c.goodbye()
			c.leaving = false
		})
	}
}

func (s *sim) addClient() {
	c := &simClient{
		s: s, id: len(s.clients) + 1, cut: map[gearsfs.MemberID]bool{}, many: 1 + s.rng.IntN(6), left: 1 << 30,
	}
	s.clients = append(s.clients, c)
	s.after(s.between(0, 100*time.Millisecond), c.step)
}

// operate changes who is in the group, or who leads.
func (s *sim) operate() {
	leader := s.choose(isLeading)
	if leader == nil {
		return
	}
	g := leader.group
	if other := s.choose(isUp); !s.plan.members || s.chance(30) {
		s.note("node %d is to hand over to node %d", leader.id, other.id)
		s.ask(leader, func(done func(error)) error { return g.beginTransfer(uint64(other.id), done) })
		return
	}
	members := s.history.members
	if n := s.choose(func(n *simNode) bool { return members[n.id] && n != leader }); n != nil && (len(members) > 3 || s.chance(50)) {
		s.note("node %d is to be removed", n.id)
		change, _ := (&wire.MemberChange{Remove: uint64(n.id)}).MarshalVT()
		s.ask(leader, func(done func(error)) error { return g.beginRemove(uint64(n.id), change, done) })
		return
	}
	n := s.choose(func(n *simNode) bool { return n.joined && !members[n.id] && !n.removed && n.up })
	if n == nil && len(s.nodes) < 8 {
		n = s.addNode(gearsfs.MemberID(len(s.nodes)+1), simImage{})
		n.start()
	}
	if n == nil {
		return
	}
	s.note("node %d is to be added", n.id)
	change, _ := (&wire.MemberChange{Add: &wire.Member{Id: uint64(n.id), Name: fmt.Sprint(n.id)}}).MarshalVT()
	s.ask(leader, func(done func(error)) error { return g.beginAdd(uint64(n.id), change, done) })
}

// ask is Group.ask without waiting.
func (s *sim) ask(n *simNode, begin func(done func(error)) error) {
	answered := n.once("an order")
	n.group.order(order{do: func() error {
		return begin(func(err error) {
			answered()
			s.note("node %d has done as it was told: %v", n.id, err)
		})
	}, drop: answered})
	n.turn()
}

// verify has every node hash its state as of some entry.
func (s *sim) verify() {
	if n := s.choose(isLeading); n != nil && !s.quiet {
		answered := n.once("a verification")
		n.group.Propose(&Proposal{Done: func(*wire.Answer, error) { answered() }, Command: &wire.Command{
			Checked: true, Op: &wire.Command_Verify{Verify: &wire.Verify{}},
		}})
		n.turn()
	}
	s.after(s.between(0, 3*time.Second), s.verify)
}

// near reads now and then on some node.
func (s *sim) near() {
	if n := s.choose(isUp); n != nil && !s.quiet {
		n.look()
		n.turn()
	}
	s.after(s.between(0, 8*s.plan.think), s.near)
}

// look reads the streams as the node has them, and counts that once it is
// certain, or fresh: where the node believes that it leads as the API does, else
// as a mount does.
func (n *simNode) look() {
	floor := n.s.history.ended
	show := func() (shown []streamAt) {
		for _, key := range simKeys {
			at, err := n.show(key)
			if err != nil {
				n.s.fail("node %d: read %s: %w", n.id, key, err)
			}
			shown = append(shown, at)
		}
		return shown
	}
	answered := n.once("a look")
	if n.front.leads {
		shown := show()
		n.group.WhenCertain(func(err error) {
			answered()
			if err == nil {
				n.s.history.read(simKeys, shown, floor)
			}
		})
		return
	}
	n.group.whenFresh(func(err error) {
		answered()
		if err == nil {
			n.s.history.seen(simKeys, show(), floor)
		}
	})
}

// settle ends all faults.
func (s *sim) settle() {
	s.note("the faults end")
	s.calm = true
	s.heal()
	for _, l := range s.links {
		*l = simLink{min: l.min, max: 400 * time.Microsecond, last: l.last}
	}
	for _, n := range s.nodes {
		n.slow, n.failSync, n.drift = false, false, 0
		n.wake()
		if !n.up && !n.removed {
			n.start()
		}
	}
	for _, c := range s.clients {
		c.loss = 0
	}
}

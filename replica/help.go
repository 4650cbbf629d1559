package replica

import (
	"time"
)

// Whoever hands things to the loop may work in its place. Waking the loop's
// goroutine costs more than most of its turns: a lone put crosses three nodes,
// and on each of them it would wake the loop, then the disk's goroutine, then
// the loop. So a goroutine that reads from a connection says Enter before it
// hands over what came, and Leave behind it; where the loop sleeps, Leave does
// a few passes of it on the spot. What is more than that is for the loop.
//
// Invariants, under mu:
//
//  1. Who has the baton may touch loop: the goroutine run, but for the time in
//     which asleep or helping is set; and who has set helping.
//  2. asleep means that run waits for an event, or is about to, and that nobody
//     has the baton. It is unset by who takes the baton, or wakes run to take it.
//  3. Nothing is left for the loop while asleep is set, unless visitors > 0: the
//     last of them sees to it. Fewer proposals than least are nothing: others are
//     in flight, and when those are through the loop is awake; or a sync runs, and
//     behind that relieve comes. So least is found under mu, after asking whether
//     one runs.

// crowdMax is up to how many proposals the last entries may have had where the
// next is made by who brings it. With more there will be others in a moment, and
// the loop, which wakes a little later, finds them together.
const crowdMax = 4

// passesMax is how often who works in the loop's place does so for what has come
// meanwhile: mostly the answers of others to what it has just synced.
const passesMax = 3

// Enter says that the caller is about to call Propose or Receive and will then
// call Leave, soon: until then the loop is not woken for it.
func (g *Group) Enter() {
	g.mu.Lock()
	g.visitors++
	g.mu.Unlock()
}

// Leave ends what Enter began. It may do a part of the loop's work, a sync of the
// log included, and so wait for the disk. The caller must hold no lock that a
// Done takes.
func (g *Group) Leave() { g.leave(false, nil) }

// LeaveYielding is Leave for a caller that others wait for: yield is called before
// it does any of that.
func (g *Group) LeaveYielding(yield func()) { g.leave(false, yield) }

// leave is Leave; with crowds the caller does not mind those. yield may be nil.
func (g *Group) leave(crowds bool, yield func()) {
	g.mu.Lock()
	g.visitors--
	due := len(g.pending) >= g.least
	if !g.asleep || g.opening() || !due && g.arrivals.empty() {
		g.mu.Unlock()
		return
	}
	g.asleep = false
	if due && g.loop.crowd > crowdMax && !crowds {
		g.mu.Unlock()
		g.kick()
		return
	}
	g.helping = true
	g.mu.Unlock()
	if yield != nil {
		yield()
	}
	events := g.loop.events()
	for passes := 1; ; passes++ {
		err := g.guard(g.help)
		rearm := g.loop.events() != events
		g.mu.Lock()
		least := g.leastLocked()
		state := g.stateLocked(least)
		if state == busy && err == nil && passes < passesMax {
			g.mu.Unlock()
			continue
		}
		g.helping = false
		g.helpErr = err
		g.least = least
		wake := err != nil || rearm || state != idle
		g.asleep = !wake
		g.helped.Signal()
		g.mu.Unlock()
		if wake {
			g.kick()
		}
		return
	}
}

// relieve is a visit by the goroutine that syncs, between two syncs: what waited
// for the one before shares the next one.
func (g *Group) relieve() {
	if !g.sole.Load() {
		return
	}
	g.mu.Lock()
	g.visitors++
	g.endHoldLocked()
	g.mu.Unlock()
	g.leave(true, nil)
}

// opening reports whether the Group is not open yet, or ends.
func (g *Group) opening() bool { return !g.opened || g.closing || g.err != nil }

// help does what is ready, once.
func (g *Group) help() error {
	items, got, state := g.next()
	if state != busy {
		return nil
	}
	g.loop.visited = true
	g.gather()
	defer func() {
		g.deliver()
		g.loop.visited = false
	}()
	if err := g.pass(items, got); err != nil {
		return err
	}
	if o := &g.loop.outbox; o.held && o.prompt {
		return g.post(true)
	}
	return nil
}

func (g *Group) gather() {
	if g.loop.visited && g.cfg.Answers != nil {
		g.cfg.Answers.Gather()
	}
}

func (g *Group) deliver() {
	if g.loop.visited && g.cfg.Answers != nil {
		g.cfg.Answers.Deliver()
	}
}

// syncHere syncs the log on this goroutine, which has the baton.
func (g *Group) syncHere() {
	g.deliver()
	if !g.disk.syncThen(g.gather) {
		g.gather()
	}
}

// resume takes the baton for the loop's goroutine, which was asleep, and returns
// why a helper failed.
func (g *Group) resume() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.helping {
		g.helped.Wait()
	}
	g.asleep = false
	return g.helpErr
}

// events are the channels that the sleeping loop waits on, besides wake.
type events struct {
	flushed, cut           <-chan error
	retry, campaign, ended <-chan time.Time
	ticks                  <-chan time.Time
}

func (l *loop) events() events {
	return events{
		flushed: l.flush.done, cut: l.flush.cut, retry: l.flush.retry,
		campaign: l.campaign.due, ended: l.ending.due, ticks: l.ticks,
	}
}

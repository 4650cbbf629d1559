package replica

// event is something that came in while the loop worked or slept.
type event struct {
	kind eventKind
	err  error
}

type eventKind int

const (
	woken eventKind = iota // something under mu or a sync changed
	flushDone
	cutDone
	retryDue
	ticked
	campaignDue
	endingDue
)

// poll takes one event that is there, always the first of this order.
func (g *Group) poll() (event, bool) {
	l := &g.loop
	select {
	case <-g.wake:
		return event{kind: woken}, true
	default:
	}
	if l.ticks == nil && !l.flush.running() && l.flush.retry == nil {
		return event{}, false
	}
	select {
	case err := <-l.flush.done:
		return event{flushDone, err}, true
	default:
	}
	select {
	case err := <-l.flush.cut:
		return event{cutDone, err}, true
	default:
	}
	select {
	case <-l.flush.retry:
		return event{kind: retryDue}, true
	default:
	}
	select {
	case <-l.campaign.due:
		return event{kind: campaignDue}, true
	default:
	}
	select {
	case <-l.ending.due:
		return event{kind: endingDue}, true
	default:
	}
	select {
	case <-l.ticks:
		return event{kind: ticked}, true
	default:
	}
	return event{}, false
}

// wait waits for an event. It does not touch the loop: a helper may.
func (g *Group) wait(on events) event {
	select {
	case <-g.wake:
		return event{kind: woken}
	case err := <-on.flushed:
		return event{flushDone, err}
	case err := <-on.cut:
		return event{cutDone, err}
	case <-on.retry:
		return event{kind: retryDue}
	case <-on.campaign:
		return event{kind: campaignDue}
	case <-on.ended:
		return event{kind: endingDue}
	case <-on.ticks:
		return event{kind: ticked}
	}
}

func (g *Group) handleEvent(e event) error {
	switch e.kind {
	case flushDone:
		g.flushed(e.err)
	case cutDone:
		if err := g.isCut(e.err); err != nil {
			return err
		}
	case retryDue:
		g.retryFlush()
	case ticked:
		if err := g.tick(); err != nil {
			return err
		}
	case campaignDue:
		if err := g.campaignAgain(); err != nil {
			return err
		}
	case endingDue:
		g.loop.ending.late = true
	case woken:
		g.askFlush()
		if g.loop.outbox.late.due.Swap(false) {
			if err := g.post(true); err != nil {
				return err
			}
		}
	}
	return g.pump()
}

package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// someTime is mostly over some entries later.
func (g *traffic) someTime() uint64 {
	if g.rng.IntN(3) == 0 {
		return g.rng.Uint64N(uint64(gearsfs.SessionTTL))
	}
	return g.rng.Uint64N(20e6)
}

// inTime adds to an operation what log time has to do with it.
func (g *traffic) inTime(op any) any {
	switch op := op.(type) {
	case *wire.Put:
		switch g.rng.IntN(6) {
		case 0:
			op.Delay = g.someTime()
		case 1:
			op.At = g.now + g.someTime()
		}
	case *wire.Take:
		if g.rng.IntN(6) == 0 {
			op.Keys = append(op.Keys, op.Keys[0]+".dead")
		}
		if op.Lease && g.rng.IntN(3) > 0 {
			op.LeaseFor, op.ByReceipt, op.Tries = g.someTime(), g.rng.IntN(2) == 0, g.rng.Uint32N(4)
		}
	case *wire.Settle:
		switch {
		case op.Return && g.rng.IntN(2) == 0:
			op.Delay, op.Tries = g.someTime(), g.rng.Uint32N(3)
		case !op.Return && g.rng.IntN(5) == 0:
			op.Extend = g.someTime()
		}
	case *wire.Transact:
		for _, step := range op.Steps {
			switch step := step.Op.(type) {
			case *wire.Step_Put:
				g.inTime(step.Put)
			case *wire.Step_Take:
				g.inTime(step.Take)
			case *wire.Step_Settle:
				g.inTime(step.Settle)
			}
		}
	case *wire.Confirm:
		if g.rng.IntN(3) == 0 {
			return &wire.Tick{}
		}
	case *wire.Configure:
		if g.rng.IntN(3) == 0 {
			return &wire.Configure{Target: op.Target, Key: op.Key, Settings: g.care()}
		}
	}
	return op
}

// care makes settings of what becomes of a stream's records.
func (g *traffic) care() *wire.Settings {
	set := &wire.Settings{}
	switch g.rng.IntN(4) {
	case 0, 1:
		set.Age = ptr(g.rng.Uint64N(2) * g.someTime())
	case 2:
		set.Full, set.Records = ptr(g.rng.Uint32N(3)), ptr(g.rng.Uint64N(1000))
	case 3:
		set.Tries = ptr(g.rng.Uint32N(4))
	}
	return set
}

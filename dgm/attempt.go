package dgm

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// changeAttempt is what an attempt at a change is made of, in one piece.
type changeAttempt struct {
	request wire.Request
	kind    wire.Request_Change
	change  wire.Change
	command wire.Command
}

// attemptAt returns a copy of req, under a session, that a volume of this
// process may write into: it shares with req only what none does. That are
// payloads and all operations but those that name files by paths, hold a
// count, or are told who has a file open.
func attemptAt(req *wire.Request, id gearsfs.SessionID) *wire.Request {
	change := req.GetChange()
	if change == nil {
		return queryAttempt(req, id)
	}
	a := new(changeAttempt)
	a.request.Kind = &a.kind
	a.request.SessionMinted, a.request.SessionSalt = uint64(id.Minted), id.Salt
	a.kind.Change = &a.change
	a.change.Command, a.change.Path = &a.command, change.Path
	a.change.NoWait, a.change.Fast, a.change.Paths = change.NoWait, change.Fast, change.Paths
	a.change.Open = change.Open
	a.command.Op = change.Command.Op
	switch op := change.Command.Op.(type) {
	case *wire.Command_Put:
		a.command.Op = &wire.Command_Put{Put: putAttempt(op.Put)}
	case *wire.Command_Take:
		a.command.Op = &wire.Command_Take{Take: takeAttempt(op.Take)}
	case *wire.Command_Update:
		a.command.Op = &wire.Command_Update{Update: updateAttempt(op.Update)}
	case *wire.Command_Transact:
		a.command.Op = &wire.Command_Transact{Transact: transactAttempt(op.Transact)}
	case *wire.Command_Move:
		m := op.Move
		a.command.Op = &wire.Command_Move{Move: &wire.Move{Target: m.Target, Key: m.Key, To: m.To, Max: m.Max}}
	case *wire.Command_CopyFile:
		a.command.Op = &wire.Command_CopyFile{CopyFile: &wire.CopyFile{From: op.CopyFile.From, To: op.CopyFile.To}}
	case *wire.Command_Configure:
		c := op.Configure
		a.command.Op = &wire.Command_Configure{Configure: &wire.Configure{
			Target: c.Target, Key: c.Key, Seal: c.Seal, Clear: c.Clear, Drop: c.Drop,
			SetLimits: c.SetLimits, LimitRecords: c.LimitRecords, LimitBytes: c.LimitBytes, Settings: c.Settings,
		}}
	case *wire.Command_Unlink:
		u := op.Unlink
		a.command.Op = &wire.Command_Unlink{Unlink: &wire.Unlink{Dir: u.Dir, Name: u.Name, IsDir: u.IsDir}}
	case *wire.Command_Rename:
		n := op.Rename
		a.command.Op = &wire.Command_Rename{Rename: &wire.Rename{
			Dir: n.Dir, Name: n.Name, NewDir: n.NewDir, NewName: n.NewName, Flags: n.Flags,
		}}
	}
	return &a.request
}

func putAttempt(p *wire.Put) *wire.Put {
	return &wire.Put{
		Target: p.Target, Key: p.Key, Records: p.Records, Mode: p.Mode, Seal: p.Seal, Append: p.Append,
		At: p.At, Delay: p.Delay,
	}
}

func takeAttempt(t *wire.Take) *wire.Take {
	return &wire.Take{
		Target: t.Target, Keys: t.Keys, Max: t.Max, Lease: t.Lease, Force: t.Force,
		LeaseFor: t.LeaseFor, ByReceipt: t.ByReceipt, Tries: t.Tries,
	}
}

func updateAttempt(u *wire.Update) *wire.Update {
	return &wire.Update{Target: u.Target, Key: u.Key, Record: u.Record, Mode: u.Mode, IfSeq: u.IfSeq}
}

func transactAttempt(tx *wire.Transact) *wire.Transact {
	out := &wire.Transact{Steps: make([]*wire.Step, len(tx.Steps))}
	for i, step := range tx.Steps {
		out.Steps[i] = step
		switch op := step.Op.(type) {
		case *wire.Step_Condition:
			c := op.Condition
			out.Steps[i] = &wire.Step{Op: &wire.Step_Condition{Condition: &wire.Condition{
				Target: c.Target, Key: c.Key, NewestSeq: c.NewestSeq, HeadSeq: c.HeadSeq, Empty: c.Empty, AtLeast: c.AtLeast,
			}}}
		case *wire.Step_Take:
			out.Steps[i] = &wire.Step{Op: &wire.Step_Take{Take: takeAttempt(op.Take)}}
		case *wire.Step_Look:
			l := op.Look
			out.Steps[i] = &wire.Step{Op: &wire.Step_Look{Look: &wire.Look{Target: l.Target, Key: l.Key, Max: l.Max}}}
		case *wire.Step_Update:
			out.Steps[i] = &wire.Step{Op: &wire.Step_Update{Update: updateAttempt(op.Update)}}
		case *wire.Step_Put:
			out.Steps[i] = &wire.Step{Op: &wire.Step_Put{Put: putAttempt(op.Put)}}
		}
	}
	return out
}

func queryAttempt(req *wire.Request, id gearsfs.SessionID) *wire.Request {
	a := &wire.Request{Kind: req.Kind, SessionMinted: uint64(id.Minted), SessionSalt: id.Salt}
	switch op := req.GetQuery().GetOp().(type) {
	case *wire.Query_Peek:
		p := op.Peek
		a.Kind = &wire.Request_Query{Query: &wire.Query{Op: &wire.Query_Peek{Peek: &wire.Peek{
			Target: p.Target, Path: p.Path, Key: p.Key, Max: p.Max, NoWait: p.NoWait,
			Follow: p.Follow, After: p.After, Last: p.Last, Gone: p.Gone,
		}}}}
	case *wire.Query_ListStreams:
		s := op.ListStreams
		a.Kind = &wire.Request_Query{Query: &wire.Query{Op: &wire.Query_ListStreams{ListStreams: &wire.ListStreams{
			Target: s.Target, Path: s.Path, After: s.After, Max: s.Max, Only: s.Only,
		}}}}
	case *wire.Query_Near:
		n := op.Near
		a.Kind = &wire.Request_Query{Query: &wire.Query{Op: &wire.Query_Near{Near: &wire.Near{
			Target: n.Target, Path: n.Path, Keys: n.Keys,
		}}}}
	}
	return a
}

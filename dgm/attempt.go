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
// payloads and all operations but those that name a file by a path, hold a
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
	a.change.NoWait, a.change.Fast = change.NoWait, change.Fast
	a.command.Op = change.Command.Op
	switch op := change.Command.Op.(type) {
	case *wire.Command_Put:
		p := op.Put
		a.command.Op = &wire.Command_Put{Put: &wire.Put{
			Target: p.Target, Key: p.Key, Records: p.Records, Mode: p.Mode, Seal: p.Seal, Append: p.Append,
		}}
	case *wire.Command_Take:
		t := op.Take
		a.command.Op = &wire.Command_Take{Take: &wire.Take{
			Target: t.Target, Keys: t.Keys, Max: t.Max, Lease: t.Lease, Force: t.Force,
		}}
	case *wire.Command_Configure:
		c := op.Configure
		a.command.Op = &wire.Command_Configure{Configure: &wire.Configure{
			Target: c.Target, Key: c.Key, Seal: c.Seal, Clear: c.Clear, Drop: c.Drop,
			SetLimits: c.SetLimits, LimitRecords: c.LimitRecords, LimitBytes: c.LimitBytes,
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

func queryAttempt(req *wire.Request, id gearsfs.SessionID) *wire.Request {
	a := &wire.Request{Kind: req.Kind, SessionMinted: uint64(id.Minted), SessionSalt: id.Salt}
	switch op := req.GetQuery().GetOp().(type) {
	case *wire.Query_Peek:
		p := op.Peek
		a.Kind = &wire.Request_Query{Query: &wire.Query{Op: &wire.Query_Peek{Peek: &wire.Peek{
			Target: p.Target, Path: p.Path, Key: p.Key, Max: p.Max, NoWait: p.NoWait,
			Follow: p.Follow, After: p.After, Last: p.Last,
		}}}}
	case *wire.Query_ListStreams:
		s := op.ListStreams
		a.Kind = &wire.Request_Query{Query: &wire.Query{Op: &wire.Query_ListStreams{ListStreams: &wire.ListStreams{
			Target: s.Target, Path: s.Path, After: s.After, Max: s.Max, Only: s.Only,
		}}}}
	}
	return a
}

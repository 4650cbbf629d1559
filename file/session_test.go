package file

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// again applies a command that was applied before and returns its answer and
// error.
func (r *rig) again(cmd *wire.Command) (*wire.Answer, error) {
	r.t.Helper()
	a := r.entry(cmd)[0]
	return a, answerError(a)
}

func (r *rig) sessionRows() (n int) {
	view := r.data.State.View()
	defer view.Close()
	require.NoError(r.t, scanSessions(view, func(gearsfs.SessionID, *wire.SessionRow) { n++ }))
	return n
}

// Every kind of command gives its first answer again, also from a state that
// was opened anew.
func TestRetriesGiveTheFirstAnswer(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("jobs", "a", "bb", "ccc", "d", "e", "f"))
	returned := c.must(leaseOp(1, "jobs"))
	appendOp := putOp("data", "x")
	appendOp.Append = true
	var commands []*wire.Command
	var answers []*wire.Answer
	for _, op := range []any{
		putOp("jobs", "g", "h"),
		&wire.Settle{Receipts: receipts(returned), Return: true},
		takeOp(3, "jobs"), // one returned, two from the cursor
		leaseOp(2, "jobs"),
		appendOp,
		sealOp("other", true),
		&wire.Make{Dir: 1, Name: "made", Mode: modeFile | 0o600},
	} {
		cmd := c.command(op)
		a, err := r.again(cmd)
		require.NoError(t, err)
		commands, answers = append(commands, cmd), append(answers, a)
	}
	before := string(withoutVolume(r.dump()))
	for range 2 {
		for i, cmd := range commands {
			a, err := r.again(cmd)
			require.NoError(t, err, "%v", cmd)
			require.Equal(t, answers[i].String(), a.String())
		}
		require.Equal(t, before, withoutVolume(r.dump()), "a retry changes nothing")
		r.reopen()
	}
	r.check()
}

func TestARetriedTakeWhoseLeaseIsGoneRunsAnew(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("jobs", "a", "b", "c"))
	lease := c.command(leaseOp(2, "jobs"))
	first, err := r.again(lease)
	require.NoError(t, err)
	r.do(&wire.EndSession{SessionMinted: uint64(c.id.Minted), SessionSalt: c.id.Salt})
	require.Equal(t, []Touched{{Ino: gearsfs.Ino(first.Ino), Key: "jobs", Ready: true, Ended: true}}, r.seen.touched)
	second, err := r.again(lease)
	require.NoError(t, err)
	require.Equal(t, datas(first.Records), datas(second.Records))
	require.EqualValues(t, 2, second.Records[0].Deliveries)
	require.Greater(t, second.Records[0].Fence, first.Records[1].Fence)
	third, err := r.again(lease)
	require.NoError(t, err)
	require.Equal(t, second.String(), third.String())
	r.check()
}

func TestFailuresAreNotRemembered(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	take := c.command(takeOp(1, "jobs"))
	_, err := r.again(take)
	require.ErrorIs(t, err, gearsfs.ErrEmpty)
	require.Zero(t, r.sessionRows())
	r.do(putOp("jobs", "a"))
	a, err := r.again(take)
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, datas(a.Records))
}

func TestConfirmedAnswersAreForgotten(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	put := c.command(putOp("jobs", "a"))
	_, err := r.again(put)
	require.NoError(t, err)
	next := c.command(putOp("jobs", "b"))
	next.Confirmed = next.Seq
	_, err = r.again(next)
	require.NoError(t, err)
	_, err = r.again(put)
	require.ErrorIs(t, err, gearsfs.ErrSession)
	_, err = r.again(next)
	require.NoError(t, err)
	s, err := r.m.session(c.id)
	require.NoError(t, err)
	require.Len(t, s.row.Answers, 1)
	require.Equal(t, []string{"a", "b"}, datas(r.do(takeOp(9, "jobs")).Records), "nothing was put twice")
}

func TestClosedSessionsAreForgotten(t *testing.T) {
	r := newRig(t)
	const sessions = 3 * sweepMax
	var last *wire.Command
	for i := range sessions {
		c := r.client(uint64(i))
		last = c.command(putOp("jobs", "a"))
		last.Close = true
		_, err := r.again(last)
		require.NoError(t, err)
	}
	require.Equal(t, sessions, r.sessionRows())
	_, err := r.again(last)
	require.NoError(t, err, "its answer is kept for a while")
	open, err := r.m.Sessions()
	require.NoError(t, err)
	require.Empty(t, open)
	r.reopen()
	r.now += uint64(gearsfs.SessionTTL)
	for range sessions/sweepMax + 1 {
		before := r.sessionRows()
		r.do(putOp("other"))
		require.LessOrEqual(t, before-r.sessionRows(), sweepMax, "a bounded number per entry")
	}
	require.Zero(t, r.sessionRows())
	_, err = r.again(last)
	require.ErrorIs(t, err, gearsfs.ErrSession, "a stranger this late is not let in")
	require.EqualValues(t, sessions, r.info(r.do(putOp("jobs")).Ino, "jobs").Records)
	r.check()
}

func TestConfirmOpensASession(t *testing.T) {
	r := newRig(t)
	c, idle := r.client(1), r.client(2)
	c.must(&wire.Confirm{})
	r.now += 2 * uint64(gearsfs.SessionTTL)
	c.must(putOp("jobs", "a"))
	_, err := idle.ask(putOp("jobs", "b"))
	require.ErrorIs(t, err, gearsfs.ErrSession)
	end := idle.command(&wire.Confirm{})
	end.Close = true
	end.SessionMinted = r.now
	require.Zero(t, r.entry(end)[0].Code)
	require.Equal(t, 1, r.sessionRows())
}

func TestASessionThatComesBackStays(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	put := c.command(putOp("jobs", "a"))
	_, err := r.again(put)
	require.NoError(t, err)
	r.do(&wire.EndSession{SessionMinted: uint64(c.id.Minted), SessionSalt: c.id.Salt})
	r.now += uint64(gearsfs.SessionTTL) / 2
	c.must(putOp("jobs", "b"))
	r.now += uint64(gearsfs.SessionTTL)
	_, err = r.again(put)
	require.NoError(t, err)
	r.do(&wire.EndSession{SessionMinted: uint64(c.id.Minted), SessionSalt: c.id.Salt, Forget: true})
	require.Zero(t, r.sessionRows())
	_, err = r.again(put)
	require.ErrorIs(t, err, gearsfs.ErrSession)
}

func TestClosingReturnsLeases(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("jobs", "a", "b")).Ino
	c.must(leaseOp(2, "jobs"))
	end := c.command(&wire.Confirm{})
	end.Close = true
	_, err := r.again(end)
	require.NoError(t, err)
	require.Equal(t, uint64(2), r.info(ino, "jobs").Records)
	require.Equal(t, gearsfs.Seq(1), r.info(ino, "jobs").Head.Seq)
	r.check()
}

// What an unconfirmed answer refers to survives what removes its rows.
func TestAnswersKeepRecordsWhoseRowsGo(t *testing.T) {
	for name, remove := range map[string]any{
		"clear":    configure("jobs", func(c *wire.Configure) { c.Clear = true }),
		"drop":     configure("jobs", func(c *wire.Configure) { c.Drop = true }),
		"unlink":   &wire.Unlink{Dir: 1, Name: "f"},
		"truncate": nil,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			c := r.client(1)
			key := "jobs"
			if remove == nil {
				key = "data"
			}
			ino := c.must(putOp(key, "a", "", "ccc", "d", "e")).Ino
			held := receipts(c.must(leaseOp(2, key)))
			c.must(&wire.Settle{Receipts: held[:1], Return: true})
			take := c.command(takeOp(3, key))
			first, err := r.again(take)
			require.NoError(t, err)
			require.Equal(t, []string{"a", "ccc", "d"}, datas(first.Records))
			switch op := remove.(type) {
			case nil: // the leased empty record is the head: cut right behind it
				r.do(&wire.SetAttr{Ino: ino, Size: new(uint64(1))})
			case *wire.Unlink:
				op.OpenIno = ino
				r.do(op)
			default:
				r.do(op)
			}
			for range 2 {
				a, err := r.again(take)
				require.NoError(t, err)
				require.Equal(t, first.String(), a.String())
				r.reopen()
			}
			confirm := c.command(&wire.Confirm{})
			confirm.Confirmed = confirm.Seq
			_, err = r.again(confirm)
			require.NoError(t, err)
			require.Empty(t, r.m.sessions.pins)
			r.check()
		})
	}
}

func TestEndOfSessionReleasesOrphans(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("data", "x")).Ino
	r.do(r.unlink(1, "f", false, c.id))
	require.True(t, r.m.IsOrphan(gearsfs.Ino(ino)))
	open, err := r.m.Sessions()
	require.NoError(t, err)
	require.Contains(t, open, c.id)
	r.do(&wire.EndSession{SessionMinted: uint64(c.id.Minted), SessionSalt: c.id.Salt})
	_, err = r.m.GetAttr(gearsfs.Ino(ino))
	require.ErrorIs(t, err, gearsfs.ErrStale)
	open, err = r.m.Sessions()
	require.NoError(t, err)
	require.NotContains(t, open, c.id)
	r.check()
}

func TestASessionHasABoundOfAnswers(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	var cmds []*wire.Command
	for range answersMax {
		cmds = append(cmds, c.command(&wire.Configure{Target: inRoot, Key: "k"}))
	}
	r.do(putOp("k"))
	for _, a := range r.entry(cmds...) {
		require.Zero(t, a.Code)
	}
	more := c.command(putOp("k", "x"))
	_, err := r.again(more)
	require.ErrorIs(t, err, gearsfs.ErrOverload)
	more.Confirmed = 2
	_, err = r.again(more)
	require.NoError(t, err)
}

// One command that waits does not keep the answers of all later ones: they are
// confirmed around it, and none of them can come late.
func TestAnswersAreConfirmedAroundAWait(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	waiting := c.command(takeOp(1, "later"))
	var puts []*wire.Command
	for range 10 {
		cmd := c.command(putOp("jobs", "x"))
		_, err := r.again(cmd)
		require.NoError(t, err)
		puts = append(puts, cmd)
	}
	_, err := r.again(waiting)
	require.ErrorIs(t, err, gearsfs.ErrEmpty)

	next := c.command(putOp("later", "y"))
	next.Confirmed, next.Unconfirmed = next.Seq, []uint64{waiting.Seq, puts[3].Seq}
	_, err = r.again(next)
	require.NoError(t, err)
	r.reopen()
	s, err := r.m.session(gearsfs.SessionID{Minted: int64(next.SessionMinted), Salt: next.SessionSalt})
	require.NoError(t, err)
	require.Len(t, s.row.Answers, 2, "of the put that has no answer yet and the last one")
	for i, cmd := range puts {
		a, err := r.again(cmd)
		if i == 3 {
			require.NoError(t, err)
			require.EqualValues(t, 4, a.FirstSeq)
			continue
		}
		require.ErrorIs(t, err, gearsfs.ErrSession)
	}
	for range 2 {
		a, err := r.again(waiting)
		require.NoError(t, err)
		require.Equal(t, "y", string(a.Records[0].Data))
	}
	last := c.command(putOp("jobs", "z"))
	last.Confirmed = last.Seq
	_, err = r.again(last)
	require.NoError(t, err)
	_, err = r.again(waiting)
	require.ErrorIs(t, err, gearsfs.ErrSession)
}

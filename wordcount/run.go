package wordcount

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// Where runs are kept, on both nodes.
const (
	dirName  = "wordcount"
	jobsName = "jobs"
	jobsPath = "/" + dirName + "/" + jobsName
)

// The streams of a run's file: linesKey on the node that counts, the others on
// the sender's.
const (
	linesKey  gearsfs.Key = "lines"
	acksKey   gearsfs.Key = "acks"
	resultKey gearsfs.Key = "result"
)

// Bytes that "lines" and "acks" may hold before a put waits.
const (
	linesBytesMax = 16 << 20
	acksBytesMax  = 16 << 20
)

// A job tells workers of a run. It is a record of the data stream of jobsPath:
// one line of JSON.
type job struct {
	Run    string      // the file's name on both nodes
	Ino    gearsfs.Ino // the file with the lines
	Remote string      // the remote of this node that leads to the sender
	Back   gearsfs.Ino // the sender's own file, there
	Rule   Rule
	Words  bool // the sender wants to know how often each word was met
}

func (j job) record() (gearsfs.NewRecord, error) {
	line, err := json.Marshal(j)
	return gearsfs.NewRecord{Data: append(line, '\n'), Type: "job"}, err
}

// parseJob returns gearsfs.ErrProtocol for a record that is no job.
func parseJob(r gearsfs.Record) (job, error) {
	var j job
	if err := json.Unmarshal(r.Data, &j); err != nil {
		return job{}, gearsfs.ErrProtocol.Because("record %d of %s is no job: %v", r.Place.Seq, jobsPath, err)
	}
	if gearsfs.CheckName(j.Run) != nil || j.Ino == 0 || j.Back == 0 || j.Remote == "" {
		return job{}, gearsfs.ErrProtocol.Because("record %d of %s is no job", r.Place.Seq, jobsPath)
	}
	return j, nil
}

const (
	modeDir  = 0o040000 | 0o1777 // whoever reaches the node may count there
	modeFile = 0o100000 | 0o666
)

// makeDir returns the directory of the runs, making it where it is missing.
func makeDir(ctx context.Context, m dgm.Manager) (gearsfs.Ino, error) {
	attr, err := m.Make(ctx, gearsfs.RootIno, dirName, dgm.Make{Mode: modeDir})
	if errors.Is(err, gearsfs.ErrExists) || errors.Is(err, gearsfs.ErrAccess) {
		attr, err = m.Lookup(ctx, gearsfs.RootIno, dirName)
	}
	return attr.Ino, err
}

// gone reports whether err says that a file was removed.
func gone(err error) bool {
	return errors.Is(err, gearsfs.ErrRemoved) || errors.Is(err, gearsfs.ErrStale) || errors.Is(err, gearsfs.ErrNotFound)
}

// sweepJobs removes the jobs at the head of the queue whose runs are over, and
// what is no job. Two that sweep at once do each other no harm: each looks at
// the jobs that it has leased, and once more at one that it has given back, which
// the other may have missed.
func sweepJobs(ctx context.Context, node dgm.Manager) error {
	for {
		records, err := node.Take(ctx, dgm.Take{
			File: gearsfs.At(jobsPath), Keys: []gearsfs.Key{gearsfs.DataKey}, NoWait: true, Lease: true,
		})
		if errors.Is(err, gearsfs.ErrEmpty) || gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		j, err := parseJob(records[0])
		over := err != nil
		if !over {
			_, err = node.GetAttr(ctx, j.Ino)
			over = gone(err)
		}
		err = node.Settle(ctx, dgm.Settle{Receipts: []gearsfs.Receipt{*records[0].Receipt}, Return: !over})
		if err != nil && !errors.Is(err, gearsfs.ErrGone) {
			return err
		}
		if over {
			continue
		}
		if _, err = node.GetAttr(ctx, j.Ino); !gone(err) {
			return nil
		}
	}
}

// removeRun removes the file of a run, where it is still there.
func removeRun(ctx context.Context, m dgm.Manager, dir gearsfs.Ino, run string) error {
	if err := m.Unlink(ctx, dir, run); err != nil && !gone(err) {
		return err
	}
	return nil
}

// tidyTimeout bounds the cleaning up after a run, which also goes on when the
// run was cancelled.
const tidyTimeout = 5 * time.Second

func tidyContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
}

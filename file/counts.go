package file

import "github.com/gearsfs/gearsfs/wire"

// Counts are what a Machine has done since it was opened. All replicas of a
// volume that applied the same entries have done the same; none of it is stored.
type Counts struct {
	// Commands has each kind that there is, named as in wire.Command, also those
	// that have not come. What is sent again, and has its answer already, is not
	// counted again; nor is what the Machine does by itself when its time has come.
	Commands map[string]CommandCount
	Records  RecordCounts
}

// CommandCount is how many commands of a kind were done, and how many had an
// error as their answer. One that waits counts as refused for each time that it
// is tried in vain.
type CommandCount struct{ Done, Refused uint64 }

// RecordCounts are what happened to records, in all streams that are not in
// memory.
type RecordCounts struct {
	Put       uint64 // into a stream: by puts and updates
	Taken     uint64 // for good, without a lease
	Leased    uint64 // handed out, again ones among them
	Acked     uint64
	Returned  uint64 // by who had them leased, or because the lease ended
	Dead      uint64 // returned too often, and moved to KEY.dead
	Discarded uint64 // too old, or gone for newer ones
}

// counts are a Machine's, the commands by their kind.
type counts struct {
	commands []CommandCount
	records  RecordCounts
}

// command counts one that was dispatched.
func (n *counts) command(cmd *wire.Command, answer *wire.Answer) {
	if of := &n.commands[cmd.Kind()]; answer.Code == 0 {
		of.Done++
	} else {
		of.Refused++
	}
}

// Counts returns what the Machine has done until now.
func (m *Machine) Counts() Counts {
	m.mu.RLock()
	defer m.mu.RUnlock()
	c := Counts{Commands: make(map[string]CommandCount), Records: m.counts.records}
	for kind, name := range wire.CommandKinds() {
		if name != "" {
			c.Commands[name] = m.counts.commands[kind]
		}
	}
	return c
}

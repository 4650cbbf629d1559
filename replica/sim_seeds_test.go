package replica

// simKept are seeds that showed something wrong, with what it was: sim_stories_test.go
// tells it without the noise.
var simKept = []struct {
	seed  uint64
	found string
}{
	{216, "the last member of a group that was removed around it did not lead, and did not answer who read"},
	{2781, "a member was sent a snapshot of a group without it again and again"},
	{821057, "a member that had not heard of its vote kept the other one from leading"},
	{50335, "who had the longest log heard what was committed from shorter ones, and waited anew each time"},
	{821274, "a put that was refused for want of room, and later ones of its session had passed, went in when it was sent again"},
	{183822, "two nodes that began together asked for votes at the same tick three times in a row"},
	{111510, "the same, of a put that its node had refused without the log"},
}

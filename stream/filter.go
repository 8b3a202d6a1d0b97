package stream

// FilterFor is Filter, narrowed to the events of a topic and of an event type. An empty one stands for all, and so
// does one that the template does not name.
func (t Template) FilterFor(topic, eventType string) string {
	return t.fill(func(i int) string {
		switch field := t.tokens[i].field; {
		case field == fieldTopic && topic != "":
			return EncodeToken(topic)
		case field == fieldEventType && eventType != "":
			return EncodeToken(eventType)
		}
		return "*"
	})
}

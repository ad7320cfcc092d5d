"""Any Faust app on this transport, by one line: `broker="headwater://..."`.

`fixup` is what Faust calls for each app. For one with our transport it looks at the settings (`settings`, `credentials`) and
puts lean forms of Faust's classes in the place of the usual ones (`stream`, `topic`, `agent`), and our way to read replies
(`replies`). An app's own classes stay.

Nothing here knows of DynamoDB, nor of Headwater's own settings.
"""
